"""Runs for other tools."""

import csv
import json

import pytest

from polyak.lab.errors import BadInput
from polyak.lab.export import export, frame, rows
from tests.lab import synthetic


@pytest.fixture(scope="module")
def runs():
    return list(synthetic.records(synthetic.described(3)).values())


def test_a_row_a_run(runs):
    made = rows(runs)
    assert len(made) == len(runs)
    assert made[0]["setting.lr"] == runs[0].setting["lr"] and made[0]["setting.betas"] in (
        "[0.9, 0.99]",
        "[0.95, 0.98]",
    )
    assert {row["reason"] for row in made} == {None, "the loss is NaN"} or all(row["reason"] is None for row in made)
    assert made[0]["version.torch"] == "2.13" and made[-1]["step_ms"] > 0


def test_csv(runs, tmp_path):
    export(runs, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["key"] for row in read] == [run.key for run in runs]
    assert [float(row["metric"]) if row["metric"] else None for row in read] == [run.metric for run in runs]


def test_json_has_the_curves(runs, tmp_path):
    export(runs, tmp_path / "runs.json")
    read = json.loads((tmp_path / "runs.json").read_text())
    assert read[-1]["validation"] == runs[-1].detail["validation"]


def test_parquet(runs, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    export(runs, tmp_path / "runs.parquet")
    read = pandas.read_parquet(tmp_path / "runs.parquet")
    assert list(read["key"]) == [run.key for run in runs]


def test_tensorboard(runs, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    export(runs[:2], tmp_path / "runs.tensorboard")
    folders = sorted(path.parent for path in (tmp_path / "runs.tensorboard").rglob("events*"))
    assert len(folders) == 2
    read = accumulator.EventAccumulator(str(folders[0]))
    read.Reload()
    assert "train" in read.Tags()["scalars"]
    with pytest.raises(BadInput, match=r"runs\.tensorboard' exists"):
        export(runs, tmp_path / "runs.tensorboard")


def test_columns_of_mixed_values_become_text(runs):
    pytest.importorskip("pandas")
    some = synthetic.described(["adamw"], spaces={})
    mixed = [*runs, *synthetic.records(some).values()]
    mixed[-1].setting["lr"] = "auto"
    assert frame(mixed)["setting.lr"].map(type).isin([str, type(None)]).all()


def test_nothing_is_written_over(runs, tmp_path):
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(BadInput, match=r"mine\.csv' exists and is no export of polyak"):
        export(runs, tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_an_unknown_form(runs, tmp_path):
    with pytest.raises(BadInput, match=r"cannot export to 'runs\.xls': name it \*\.csv, \*\.json"):
        export(runs, tmp_path / "runs.xls")
