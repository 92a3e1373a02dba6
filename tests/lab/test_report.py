"""The report: what it says, and the page and the table that show it."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from polyak.lab import html, table
from polyak.lab.comparison import write_report
from polyak.lab.errors import LabError
from polyak.lab.report import summarize
from polyak.lab.terminal import console, print_errors, print_report
from tests.lab.conftest import campaign_of, quadratic, run_here


@pytest.fixture(scope="module")
def report(records):
    return summarize(*records)


def by_name(problem):
    return {method.method: method for method in problem.methods}


def test_figures_are_those_of_the_records(report, records):
    campaign, made = records
    loaded = campaign.problems[0]
    for method in report.problems[0].methods:
        finals = [made[spec.key] for spec in campaign.final_specs(loaded, method.method, made)]
        trials = [made[spec.key] for spec in campaign.trial_specs(loaded, method.method)]
        values = [record.metric for record in finals]
        assert method.metrics == values and method.median == pytest.approx(sum(values) / 2)
        assert (method.low, method.high, method.coverage) == (min(values), max(values), 0.5)
        assert method.tuned == min(record.metric for record in trials)
        assert method.untuned == (None if method.method == "sgd" else trials[0].metric)  # SGD's are no trial
        assert method.state_bytes_per_parameter == finals[0].detail["state_bytes"] / 4
        steps = [record.detail["target_step"] or math.inf for record in finals]
        assert method.reached == sum(math.isfinite(s) for s in steps)
        assert [row[0] for row in method.validation_curve] == [s for s, _ in finals[0].detail["validation"]]


def test_methods_are_sorted_and_the_best_is_marked(report):
    problem = report.problems[0]
    medians = [method.median for method in problem.methods]
    assert medians == sorted(medians)
    assert table.columns(problem)[0].best(problem.methods) == {problem.methods[0].method}


def diverging(share):
    """A problem whose given seeds diverge at the best setting, whatever the method."""
    problem = quadratic()

    def evaluate(model, split):
        return float("nan") if split == "test" and next(share) else problem.evaluate(model, split)

    return replace(problem, evaluate=evaluate)


def test_diverged_runs_count_as_infinitely_bad():
    campaign = campaign_of(diverging(iter([1, 1, 1, 0, 0])), methods=("sgd",), seeds=5)
    method = summarize(campaign, run_here(campaign)).problems[0].methods[0]
    assert (method.median, method.high, method.diverged) == (None, None, 3)
    assert method.low == min(value for value in method.metrics if value is not None)
    campaign = campaign_of(diverging(iter([1, 0, 0, 0, 0])), methods=("sgd",), seeds=5)
    method = summarize(campaign, run_here(campaign)).problems[0].methods[0]
    assert method.median is not None and method.high is None and method.diverged == 1
    assert table._metric(method).endswith("diverged]")


def test_a_method_that_never_works_is_last_and_says_so():
    def loss(model, batch):
        raise RuntimeError("broken")

    campaign = campaign_of(quadratic(loss=loss), methods=("sgd", "adamw"))
    made = run_here(campaign)
    report = summarize(campaign, made)
    method = report.problems[0].methods[0]
    assert (method.setting, method.metrics, method.median, method.trials_failed) == (None, [], None, 3)
    assert table.columns(report.problems[0])[0].text(method) == "failed"
    assert table.verdict(report.problems[0]).startswith("No method has a median")
    assert len(report.errors) == 6 and len(report.distinct_errors()) == 1
    assert "RuntimeError: broken" in html.render(report)


def test_overlapping_intervals_are_not_told_apart(report):
    problem = report.problems[0]
    names = [f"m{i}" for i in range(4)]
    spans = [(1.0, 0.8, 1.3), (1.2, 1.1, 2.0), (1.4, 1.35, 1.5), (1.0, 0.9, 1.1)]
    methods = [
        replace(problem.methods[0], method=n, median=m, low=low, high=high, coverage=0.95, as_good_as_best=low <= 1.3)
        for n, (m, low, high) in zip(names, spans, strict=True)
    ]
    some = replace(problem, methods=[methods[0], methods[3], methods[1], methods[2]])
    assert table.verdict(some) == (
        "m0 and m3 share the best median test distance, 1. "
        "The seeds do not tell m1 apart from them: the intervals overlap."
    )
    clear = replace(problem, methods=[methods[0], replace(methods[2], as_good_as_best=False)])
    assert table.verdict(clear).endswith("and the interval is apart from all others.")
    few = replace(problem, methods=[replace(m, coverage=0.5) for m in methods])
    assert table.verdict(few).endswith("with so few seeds that may be chance.")


def test_the_order_of_records_does_not_matter(report, records):
    campaign, made = records
    assert summarize(campaign, dict(reversed(made.items()))).to_json() == report.to_json()


def test_profiles_need_several_problems(report):
    assert report.profiles == {}
    campaign = campaign_of(quadratic(), quadratic(name="other", target=1.0))
    several = summarize(campaign, run_here(campaign))
    assert set(several.profiles) == {"sgd", "adamw"}
    assert max(share for corners in several.profiles.values() for _, share in corners) <= 1
    assert 'data-chart="profile"' in html.render(several)


class Page(HTMLParser):
    """Collects what a browser would fetch, and whether every element is closed."""

    VOID = frozenset({"meta", "br", "circle", "path"})

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_and_fetches_nothing(report):
    text = html.render(report)
    page = Page(text)
    assert page.addresses == [] and page.open == []
    assert "@import" not in text and "url(http" not in text and "default-src 'none'" in text
    assert len(text) < 200_000
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)[1]
    assert json.loads(data)["methods"] == ["sgd", "adamw"]


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script>"
    campaign = campaign_of(quadratic(name=evil, metric=evil, description=evil))
    text = html.render(summarize(campaign, run_here(campaign)))
    assert evil not in text and "alert(1)" in text
    assert Page(text).open == []


def test_the_terminal_shows_the_same_figures(report, capsys):
    print_report(report, console())
    shown = capsys.readouterr().out
    for method in report.problems[0].methods:
        assert method.method in shown and table.number(method.median) in shown
    assert table.verdict(report.problems[0]) in " ".join(shown.split())


def test_errors_are_printed_once_each(capsys):
    def loss(model, batch):
        raise RuntimeError("broken")

    campaign = campaign_of(quadratic(loss=loss))
    print_errors(summarize(campaign, run_here(campaign)), console(stderr=True))
    shown = capsys.readouterr().err
    assert shown.count("RuntimeError: broken") == 1 and "quadratic, adamw, seed 0 and 5 more: failed" in shown


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 4, "–"),
        (0.98333, 4, "0.9833"),
        (200, 4, "200"),
        (12345, 4, "12345"),
        (4.5e-6, 3, "4.5e-06"),
        (0.0, 4, "0"),
    ],
)
def test_number(value, digits, text):
    assert table.number(value, digits) == text


def test_a_report_that_cannot_be_written_leaves_the_old_one(report, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(report, path)
    before = path.read_text()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyak.lab.comparison.os.replace", full)
    with pytest.raises(LabError, match=r"cannot write the report .*: No space left on device; all runs are kept"):
        write_report(report, path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(LabError, match="there is no folder"):
        write_report(report, tmp_path / "nowhere" / "report.html")
