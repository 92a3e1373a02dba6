"""The page: complete without a script, safe, small, and quick to make."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import polyak
from polyak.lab import html
from polyak.lab.report import summarize
from polyak.lab.statistics import profile_score
from polyak.lab.svg import shortened
from tests.lab import synthetic

VOID = frozenset({"meta", "br", "circle", "path", "line", "rect"})


class Page(HTMLParser):
    """Collects what a browser would fetch, all words outside scripts, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not set(self.open) & {"script", "style"}:
            self.words.append(data.strip())

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def rendered(described, records, **options):
    return html.render(summarize([described], records), **options)


def test_the_page_is_complete_and_fetches_nothing(page):
    read = Page(page)
    assert read.addresses == ["#results"] and read.open == []
    assert "@import" not in page and "url(" not in page and "default-src 'none'" in page
    assert f'<meta name="generator" content="polyak {polyak.__version__}">' in page
    assert page.count("<section data-problem=") == 1


def test_everything_is_there_without_a_script(page, many):
    described, records = many
    problem = summarize([described], records).problems[0]
    text = Page(page).text
    assert problem.sentence in text
    for method in problem.methods:
        assert text.count(shortened(method.method)) >= 6  # results, legend, forest, curves, costs, settings
    for said in (described.command, described.date, described.commit, described.machine, "torch 2.13"):
        assert said in text
    assert "the loss is NaN at step 17 (tuning)" in text
    for heading in ("Difference to adamw", "Validation accuracy", "Training loss", "Time of a step", "muon: lr"):
        assert heading in text


def test_the_verdict_comes_first(page, many):
    described, records = many
    sentence = summarize([described], records).problems[0].sentence
    body = page[page.index("<main>") :]
    assert Page(body[: body.index("<table>")]).text.index(sentence) < 60


def test_the_data_in_the_page_are_those_of_the_report(page):
    data = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', page)[1])
    assert [method["method"] for method in data[0]["methods"]].count("adamw") == 1 and len(data[0]["methods"]) == 20


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script>"
    described = synthetic.described(["adamw", evil], problem=evil, metric=evil, description=evil, command=evil)
    records = synthetic.records(described)
    some = next(iter(records))
    records[some] = replace(records[some], status="failed", metric=None, detail={"error": evil, "reason": evil})
    text = rendered(described, records)
    assert evil not in text and "alert(1)" in text
    assert Page(text).open == []


def test_brackets_are_shown_as_they_are():
    described = synthetic.described(2, metric="WER [/100 words]", higher_is_better=False, target=None)
    text = Page(rendered(described, synthetic.records(described))).text
    assert "test WER [/100 words]" in text and "Validation WER [/100 words]" in text


def test_every_cell_says_its_column_for_narrow_screens(page):
    cells = re.findall(r"<td([^>]*)>", page)
    assert cells and all('data-label="' in cell for cell in cells)


def test_several_problems_have_an_overview_and_a_profile():
    both = [synthetic.described(4, problem=name) for name in ("digits", "words")]
    records = {key: record for each in both for key, record in synthetic.records(each, lost=False).items()}
    report = summarize(both, records)
    text = html.render(report)
    assert "All problems" in Page(text).text and 'data-chart="profile"' in text
    scores = re.findall(r'<td data-label="profile score">([\d.]+)</td>', text)
    assert [float(s) for s in scores] == [
        pytest.approx(profile_score(report.profiles[m]), abs=1e-3) for m in report.methods
    ]
    assert text.count('<p class="verdict">') == 2 and Page(text).open == []


def test_the_time_to_the_target_is_best_for_who_meets_it_always():
    described = synthetic.described(2)
    records = synthetic.records(described, lost=False)
    for key, record in records.items():
        if record.split == "test":
            soon = {"adamw": 88, "sgd": 72 if record.seed <= 3 else None}[record.method]
            records[key] = replace(record, detail={**record.detail, "target_step": soon})
    text = rendered(described, records)
    cells = dict(re.findall(r'<td data-label="steps to target"( class="best")?>(\d+)', text))
    assert cells == {' class="best"': "88", "": "72"}


def test_a_page_that_follows_a_comparison_asks_for_itself(many):
    described, records = many
    assert 'data-refresh="2.0"' in rendered(described, records, refresh=2.0)
    assert "data-refresh=" not in rendered(described, records).split("<script")[0]


def test_what_is_missing_and_what_was_slow_is_said():
    described, records = synthetic.slow_and_unmet()
    text = Page(rendered(described, records, progress=["up to 3 runs are <missing>"])).text
    assert "up to 3 runs are <missing>" in text
    assert "the slowest run took 90 s, 47 times the median of its method's: " in text
    assert "met the target, validation accuracy 0.9999; the nearest came to 0." in text


def test_a_page_is_known_from_other_files(page, tmp_path):
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "other.html").write_text("<!doctype html><title>mine</title>")
    (tmp_path / "store.db").write_bytes(b"SQLite format 3\0")
    assert [html.is_report(tmp_path / name) for name in ("page.html", "other.html", "store.db")] == [True, False, False]


def test_five_thousand_runs_make_a_page_of_less_than_10_mb():
    described = synthetic.described(20)
    records = synthetic.records(described, trials=243)
    assert len(records) >= 5000
    text = rendered(described, records)
    assert len(text.encode()) < 10_000_000 and Page(text).open == []


@pytest.mark.parametrize("methods", [1, 2, 24])
def test_any_number_of_methods(methods):
    described = synthetic.described(methods)
    assert Page(rendered(described, synthetic.records(described))).open == []


def test_a_comparison_without_a_single_result():
    described = synthetic.described(2)
    assert Page(rendered(described, {})).open == []
