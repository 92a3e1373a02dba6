"""A comparison made again from what the store knows."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from polyak.lab import spec as spec_module
from polyak.lab.campaign import Campaign
from polyak.lab.entries import entries
from polyak.lab.errors import LabError
from polyak.lab.history import commit_of, describe, described, restore
from polyak.lab.problem import Problem
from polyak.lab.problems import load
from polyak.lab.report import summarize
from polyak.lab.store import Store, Stored
from tests.lab.conftest import campaign_of, quadratic, record_of, run_here


def stored(campaign, records):
    """What comes back from a store."""
    return Stored(campaign.identity, json.loads(json.dumps(describe(campaign, "polyak compare"))), list(records))


@pytest.mark.parametrize("more", [{}, {"trials": 5, "seeds": 1, "tuning_seed": 2, "reference": "lion"}])
def test_the_report_is_the_same_without_the_problem(more, monkeypatch):
    campaign = campaign_of(quadratic(), methods=("sgd", "lion", "torch.optim.AdamW"), **more)
    records = run_here(campaign)
    told = stored(campaign, records.values())
    wanted = summarize(described(told.description), records)
    versions = spec_module.versions()
    monkeypatch.setattr(spec_module, "versions", lambda: {**versions, "polyak": "a later one"})
    monkeypatch.setattr("polyak.lab.report.versions", lambda: versions)
    restored = restore(told)
    assert (restored.campaign.reference, restored.campaign.reruns) == (campaign.reference, campaign.reruns)
    assert restored.campaign.contenders["lion"].space == campaign.contenders["lion"].space
    found = summarize(restored.described, restored.records)
    assert (restored.missing, found.to_json(), found.data()) == (0, wanted.to_json(), wanted.data())
    assert found.problems[0].described == wanted.problems[0].described


def test_more_seeds_for_one_method_are_told():
    campaign = campaign_of(quadratic(), trials=1, seeds=1).with_seeds({("quadratic", "adamw"): 3})
    restored = restore(stored(campaign, run_here(campaign).values()))
    assert len(restored.records) == 6 and restored.campaign.seeds_at("quadratic", "adamw") == 3


def test_the_target_of_the_comparison_counts_and_a_script_of_unknown_length_is_told():
    def train(make_optimizer, seed, report, split):
        make_optimizer(torch.nn.Linear(2, 1))
        report(4, 0.75)
        report(8, 0.25)
        return 0.25

    own = Problem(name="own", train=train, metric="m", higher_is_better=False, target=0.5)
    records = run_here(campaign_of(own, methods=("sgd",), trials=1, seeds=1))
    today = campaign_of(replace(own, target=0.8), methods=("sgd",), trials=1, seeds=1)
    restored = restore(stored(today, records.values()))
    assert {record.detail["target_step"] for record in restored.records.values()} == {4}
    assert restored.described[0].steps is None and restored.described[0].target == 0.8


def test_a_comparison_that_has_not_ended_says_so():
    campaign = campaign_of(quadratic())
    records = run_here(campaign, until=4)
    restored = restore(stored(campaign, records.values()))
    assert (restored.missing, restored.campaign.total, restored.command) == (6, 10, "polyak compare")
    found = summarize(restored.described, restored.records).problems[0]
    assert [method.setting for method in found.methods] == [None, None] and "no method" in found.sentence


def test_a_description_of_another_kind_is_one_line():
    with pytest.raises(LabError, match="the store describes a comparison that cannot be read"):
        restore(Stored("a", {"problems": []}, []))


def test_what_is_told_of_a_comparison(tmp_path):
    campaign = campaign_of(quadratic(), methods=("sgd", "adamw"))
    told = describe(campaign, "polyak compare x")
    assert told["command"] == "polyak compare x" and told["reference"] == "sgd" and "cores" in told["machine"]
    assert told["spaces"]["adamw"]["lr"] == {"low": 1e-4, "high": 3e-2, "log": True}
    assert told["problems"][0]["metric"] == "distance" and told["problems"][0]["target"] == 0.5
    store = Store(tmp_path / "runs.db")
    store.begin(campaign.identity, told)
    for spec in campaign.due({}):
        store.claim(spec)
        outcome = record_of(spec, quadratic())
        assert outcome.status == "finished" and outcome.detail["machine"] == told["machine"]
    assert store.campaigns()[0].description == json.loads(json.dumps(told))
    store.close()


def test_the_commit_of_a_folder(tmp_path):
    assert commit_of(tmp_path / "nowhere") == ""
    outside = commit_of(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "train.py").write_text("1\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert outside == "" and commit_of(tmp_path) == head[:12]
    (tmp_path / "train.py").write_text("2\n")
    assert commit_of(tmp_path) == f"{head[:12]}, changed since"


def test_data_of_the_users_is_no_code_with_a_commit(tmp_path):
    (tmp_path / "book.txt").write_bytes(bytes(range(32, 127)) * 200)
    loaded = load(f"textfile:{tmp_path / 'book.txt'}")
    campaign = Campaign([loaded], entries(("sgd",)), 1, 1)
    assert describe(campaign, "polyak compare")["problems"][0]["commit"] == ""
