"""What programs and notebooks get, and the files that are written for them."""

import pytest

from polyak.lab import writing
from polyak.lab.errors import BadInput, LabError
from polyak.lab.results import Results, check_report_path
from tests.lab import synthetic


@pytest.fixture(scope="module")
def results():
    described = synthetic.described(3)
    return Results([described], synthetic.records(described))


def test_the_verdict_is_the_interface_that_stays(results):
    assert results.verdict() == results.report.to_json()


def test_the_table(results):
    pytest.importorskip("pandas")
    made = results.table()
    assert set(made["method"]) == {"adamw", "sgd", "muon"} and list(made["problem"]) == ["digits"] * 3
    assert {"median", "difference", "call", "setting", "step_ms"} <= set(made.columns)
    assert len(results.runs()) == 3 * (10 + 2 + 5)


def test_charts_are_those_of_the_page(results, tmp_path):
    results.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    charts = [results.plot_forest(), results.plot_curves(), results.plot_curves(which="train"), results.plot_costs()]
    for figure in (*charts, results.plot_expected(), *results.plot_tuning("digits")):
        assert figure.svg in page
    with pytest.raises(BadInput, match="which must be 'validation' or 'train', got 'test'"):
        results.plot_curves(which="test")
    with pytest.raises(BadInput, match="unknown problem 'digit'; did you mean digits"):
        results.plot_forest("digit")
    with pytest.raises(BadInput, match="at least two problems"):
        results.plot_profile()


def test_a_notebook_shows_the_sentence_the_table_and_charts(results):
    shown = results._repr_html_()
    assert "<p><b>digits: use" in shown and shown.count("<img") == 2 and "difference to adamw" in shown
    assert repr(results).startswith("digits: use")


def test_nothing_to_show():
    with pytest.raises(BadInput, match="no problem is described"):
        Results([], {})


def test_only_a_report_of_ours_is_replaced(results, tmp_path):
    path = tmp_path / "report.html"
    results.save(path)
    results.save(path)
    store = tmp_path / "d.db"
    store.write_bytes(b"SQLite format 3\0")
    for refused, why in (
        (store, "exists and is no report"),
        (tmp_path, "is a folder"),
        (tmp_path / "a" / "b", "no folder"),
    ):
        with pytest.raises(BadInput, match=why):
            check_report_path(refused)
    with pytest.raises(BadInput, match="exists and is no report"):
        results.save(store)
    assert store.read_bytes() == b"SQLite format 3\0"
    (tmp_path / "empty").touch()
    check_report_path(tmp_path / "empty")


def test_a_report_that_cannot_be_written_leaves_the_old_one(results, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    results.save(path)
    before = path.read_text()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(LabError, match=r"cannot write the report .*: No space left on device; all runs are kept"):
        results.save(path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
