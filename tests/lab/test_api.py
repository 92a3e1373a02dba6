"""Comparisons from programs, in this process, and the paths that they may write to."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy
import pytest
import torch

import polyak
from polyak.declare import Range
from polyak.lab import BadInput, LabError, compare, fit, plan, run, write_report
from polyak.lab.places import Places
from polyak.lab.results import check_report_path
from polyak.lab.store import Store
from tests.lab.conftest import campaign_of, quadratic, report_of, run_here


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs.db"


class Seen:
    def __init__(self):
        self.here, self.steps = [], []

    def began(self, spec):
        pass

    def progress(self, spec, step, steps):
        self.steps.append((step, steps))

    def ended(self, record, here):
        self.here.append(here)


def test_a_problem_object_runs_in_this_process(store):
    problem, threads, seen = quadratic(), torch.get_num_threads(), Seen()
    found = compare(problem, ["sgd", "torch.optim.AdamW"], trials=2, seeds=2, store=store, watcher=seen)
    assert seen.here == [True] * 8 and seen.steps[-1] == (30, 30) and torch.get_num_threads() == threads
    elsewhere = campaign_of(problem, methods=("sgd", "torch.optim.AdamW"), trials=2, seeds=2)
    assert found.verdict() == report_of(elsewhere, run_here(elsewhere)).to_json()
    again = Seen()
    compare(problem, ["sgd", "torch.optim.AdamW"], trials=2, seeds=2, store=store, watcher=again)
    assert again.here == [False] * 8  # the same object is the same problem,
    other = Seen()
    compare(replace(problem), "sgd", trials=1, seeds=1, store=store, watcher=other)
    assert other.here == [True] * 2  # another one is not


def test_counts_may_be_numpy_s(store):
    numbers = {name: numpy.int64(1) for name in ("trials", "seeds", "steps", "tuning_seed")}
    seen = Seen()
    compare(quadratic(), "sgd", store=store, watcher=seen, **numbers)
    assert seen.here == [True] * 2 and seen.steps[-1] == (1, 1)


def test_problems_may_be_mixed(store):
    found = compare([quadratic(), "rosenbrock"], "sgd", trials=1, seeds=1, steps=5, store=store)
    assert [problem.described.problem for problem in found.report.problems] == ["quadratic", "rosenbrock"]


def test_options_reach_the_runs(store):
    found = compare(
        quadratic(), ["sgd", "adamw"], trials=2, seeds=1, store=store,
        spaces=["lr=0.01:0.02"], fixes=["weight_decay=0.001"], reference="adamw",
    )  # fmt: skip
    for method in found.report.problems[0].methods:
        assert 0.01 <= method.setting["lr"] <= 0.02 and method.setting["weight_decay"] == 0.001
    opened = Store(store, read_only=True)
    assert opened.campaigns()[0].description["reference"] == "adamw"
    opened.close()


@pytest.mark.parametrize(
    ("problems", "methods", "more", "words"),
    [
        (3, "sgd", {}, "a problem cannot be 3"),
        ([3], "sgd", {}, "a problem cannot be 3"),
        ([], "sgd", {}, "at least one problem"),
        ("rosenbrock", [], {}, "at least one problem and one method"),
        ("rosenbrock", [torch.optim.SGD([torch.zeros(1)], lr=1.0)], {}, "a method cannot be"),
        ("rosenbrock", [lambda params: None], {}, "known to this process alone; define it at the top of a file"),
        (
            "rosenbrock",
            "sgd",
            {"spaces": 3},
            "spaces must be a dict like .* or texts as of --space, got 3",
        ),
        ("rosenbrock", "sgd", {"spaces": {"lr": 0.1}}, r"spaces\['lr'\] is 0.1; write low:high:log"),
        ("rosenbrock", "sgd", {"fixes": {"eps": 1}}, r"fixes\['eps'\]: no argument 'eps'"),
        ("rosenbrock", "sgd", {"trials": 0}, "trials must be at least 1, got 0"),
        ("rosenbrock", "sgd", {"seeds": 2.5}, "seeds must be at least 1, got 2.5"),
        ("rosenbrock", "sgd", {"tuning_seed": -1}, "tuning_seed must be an integer from 0, got -1"),
        ("rosenbrock", "sgd", {"steps": True}, "steps must be at least 1, got True"),
        (quadratic, 3, {}, "a method cannot be 3"),
        ("rosenbrock", "sgd", {"reference": "adamw"}, "the reference 'adamw' is none of the methods"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(problems, methods, more, words):
    with pytest.raises(BadInput, match=words):
        plan(problems, methods, **more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"margin": "0.1"}, "margin must be a finite number of at least 0, got '0.1'"),
        ({"margin": True}, "margin must be a finite number of at least 0, got True"),
        ({"confidence": "0.9"}, "confidence must be between 0 and 1, got '0.9'"),
        ({"workers": "2"}, "workers must be at least 1, got '2'"),
        ({"workers": 2.5}, "workers must be at least 1, got 2.5"),
        ({"store": None}, "store must be the path of a file, got None"),
    ],
)
def test_what_is_of_a_wrong_kind_is_refused_before_the_problem_is_loaded(more, words):
    with pytest.raises(BadInput, match=words):
        compare(lambda: pytest.fail("it was loaded"), "sgd", **more)


def test_methods_spaces_and_fixed_values_may_be_objects(store):
    found = compare(
        quadratic(), [torch.optim.SGD, polyak.optim.AdamW], trials=2, seeds=1, store=store,
        spaces={"lr": "0.01:0.02", "adamw.lr": Range(0.02, 0.03)}, fixes={"weight_decay": 0.001},
    )  # fmt: skip
    settings = {method.method: method.setting for method in found.report.problems[0].methods}
    assert 0.01 <= settings["torch.optim.SGD"]["lr"] <= 0.02 <= settings["adamw"]["lr"] <= 0.03
    assert {setting["weight_decay"] for setting in settings.values()} == {0.001}


def test_margin_and_confidence_reach_the_verdict(store):
    arguments = {"trials": 1, "seeds": 2, "store": store}
    wide = compare(quadratic(), ["sgd", "adamw"], **arguments, margin=1e9, confidence=0.9).report.problems[0]
    assert (wide.margin, wide.described.confidence, wide.methods[1].judgement.call) == (1e9, 0.9, "equivalent")
    for wrong, words in (
        ({"margin": -1.0}, "margin must be"),
        ({"confidence": 1.0}, "confidence must be"),
    ):
        with pytest.raises(BadInput, match=words):
            compare(quadratic(), "sgd", **arguments, **wrong)


def test_a_timeout_needs_a_worker(store):
    campaign = plan(quadratic(), "sgd", 1, 1)
    with pytest.raises(BadInput, match="timeout needs a process of its own; give the function that returns"):
        run(campaign, store, Places(timeout=5.0))
    for wrong in (0, -1.0, float("nan"), True, "5"):
        with pytest.raises(BadInput, match="timeout must be a number of seconds above 0, got"):
            run(campaign, store, Places(timeout=wrong))


def test_a_function_is_run_by_workers_and_found_again(store):
    first, again = Seen(), Seen()
    for seen in (first, again):
        found = compare(quadratic, "sgd", trials=1, seeds=1, store=store, workers=1, watcher=seen, timeout=100)
    assert found.report.problems[0].described.problem == "quadratic"
    assert (first.here, again.here) == ([True] * 2, [False] * 2)


def test_a_budget_is_fitted_by_first_trials_and_again_alike(store):
    campaign = plan(quadratic(), ["sgd", "adamw"])
    first, second = Seen(), Seen()
    fitted = fit(campaign, "30m", store, Places(1), watcher=first)
    assert first.here == [True, True] and (fitted.trials, fitted.seeds) == (50, 100)  # the most there is
    again = fit(campaign, "30m", store, Places(1), watcher=second)
    assert second.here == [False, False] and again.identity == fitted.identity
    assert fitted.trial_specs(fitted.problems[0], "adamw")[0].key == campaign.due({})[1].key  # nothing is lost
    with pytest.raises(BadInput, match="is too small"):
        fit(campaign, "0.0001s", store, Places(1))


def test_a_budget_for_what_only_fails_says_why(store):
    sound, calls = quadratic(), []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > 20:  # the look before is content
            raise RuntimeError("broken")
        return sound.loss(model, batch)

    with pytest.raises(LabError, match=r"no first trial came to an end.*RuntimeError: broken"):
        fit(plan(quadratic(loss=loss), ["sgd"]), "1h", store)


class TestPaths:
    """Whatever exists and is no report of ours is never overwritten."""

    @pytest.fixture
    def report(self):
        campaign = campaign_of(quadratic(), methods=("sgd",), trials=1, seeds=1)
        return report_of(campaign, run_here(campaign))

    def test_report_and_store_are_two_files(self, tmp_path, store, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadInput, match="report and store are both"):
            check_report_path(store.parent / "runs.db", type(store)("runs.db"))

    def test_a_file_of_somebody_else_stays(self, tmp_path, store, report):
        Store(store).close()
        page = tmp_path / "page.html"
        page.write_text("<html>mine</html>")
        for path in (store, page):
            before = path.read_bytes()
            for refused in (lambda path=path: check_report_path(path), lambda path=path: write_report(report, path)):
                with pytest.raises(BadInput, match="exists and is no report of polyak; name another file"):
                    refused()
            assert path.read_bytes() == before

    def test_a_report_of_ours_is_replaced(self, tmp_path, report):
        path = tmp_path / "report.html"
        write_report(report, path)
        path.write_text(path.read_text() + "<!-- old -->")
        check_report_path(path)
        write_report(report, path)
        assert "<!-- old -->" not in path.read_text()


SCRIPT = """
from pathlib import Path
import polyak.lab
from tests.lab.conftest import quadratic

found = polyak.lab.compare(quadratic(), ["sgd", "adamw"], trials=1, seeds=1, store="runs.db")
print([method.method for method in found.report.problems[0].methods])
"""


def test_a_script_without_a_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(type(tmp_path)(__file__).parents[2])
    code = f"import sys, runpy; sys.path.insert(0, {root!r}); runpy.run_path('script.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "adamw" in done.stdout, done.stderr
    with sqlite3.connect(tmp_path / "runs.db") as db:
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (4,)
