"""The terminal: nothing is cut at 80 columns, nothing is read as markup, and progress says what is left."""

import io

import pytest
from rich.console import Console

from polyak.lab import table
from polyak.lab.report import summarize
from polyak.lab.spec import Record, RunSpec
from polyak.lab.terminal import LiveProgress, console, print_errors, print_report
from tests.lab import synthetic
from tests.lab.conftest import campaign_of, quadratic, report_of, run_here

WER = "WER [/100 words]"


def printed(described, records, width=80):
    out = Console(file=io.StringIO(), width=width, highlight=False)
    print_report(summarize([described], records), out)
    return out.file.getvalue()


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("width", [40, 80, 100])
def test_the_tables_are_whole(width, many):
    described, records = many
    text = printed(described, records, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    problem = summarize([described], records).problems[0]
    if width >= 80:
        for column in (*table.results(problem), *table.costs(problem)):
            assert all(word in text for word in column.heading.split())
        for method in problem.methods:
            assert table.number(method.median) in text and table.call(method).split(":")[0] in text
            assert table.setting(method.setting).split(",")[0] in text
        assert "mine.py:make_optimizer" in squeezed(text)


def test_the_verdict_comes_before_the_tables(many):
    described, records = many
    text = " ".join(printed(described, records).split())
    problem = summarize([described], records).problems[0]
    assert text.index(problem.sentence) < text.index("method")


def test_words_in_brackets_are_printed_as_they_are():
    described = synthetic.described(["adamw", "[bold]x"], metric=WER, higher_is_better=False, problem="a [/] b")
    records = synthetic.records(described)
    text = printed(described, records, 120)
    assert f"test {WER}" in text and f"validation {WER}" in text
    assert "[bold]x" in text and "a [/] b" in text


def test_warnings_and_lost_runs_are_told(many):
    described, records = many
    text = squeezed(printed(described, records))
    assert "runsthatcametonothing" in text and "thelossisNaNatstep17(tuning)" in text


def test_errors_are_printed_once_each(capsys):
    def loss(model, batch):
        raise RuntimeError("broken [/] here")

    campaign = campaign_of(quadratic(loss=loss))
    print_errors(report_of(campaign, run_here(campaign)), console(stderr=True))
    shown = capsys.readouterr().err
    assert shown.count("RuntimeError: broken [/] here") == 1
    assert "quadratic, adamw, seed 0 and 5 more: failed" in shown


class Plan:
    total = 4


def spec(seed, problem="digits [/]"):
    return RunSpec("digits", problem, "abc", "adamw[x]", {"lr": 0.1}, seed, "validation", 100)


def record(of, metric):
    status = "diverged" if metric is None else "finished"
    detail = {} if metric is not None else {"reason": "the loss is NaN"}
    return Record(of.key, of.problem, of.method, of.setting, of.seed, of.split, of.steps, {}, status, metric, detail)


def test_without_a_terminal_each_run_is_a_line():
    out = Console(file=io.StringIO(), width=100)
    with LiveProgress(Plan(), out) as progress:
        progress.began(spec(0))
        progress.progress(spec(0), 50, 100)
        progress.ended(record(spec(0), 0.5), here=True)
        progress.ended(record(spec(1), 0.4), here=False)
        progress.began(spec(2))
        progress.ended(record(spec(2), None), here=True)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == 3
    assert "digits [/] adamw[x] tuning seed 0 (lr=0.1" in lines[0] and lines[0].endswith(": 0.5")
    assert lines[0].startswith("[1/4, 0:00, about 0:00 to go]")
    assert lines[1].endswith(": the loss is NaN")
    assert lines[2] == "1 runs were in the store already, 2 were made now"


def test_a_comparison_that_grows_is_told_with_its_reason_and_total():
    class More:
        total = 9

    out = Console(file=io.StringIO(), width=60)
    with LiveProgress(Plan(), out) as progress:
        progress.ended(record(spec(0), 0.5), here=True)
        progress.grew(More(), "look 1 of at most 4: [a] on digits: 5 -> 12 seeds (not settled)")
        progress.ended(record(spec(1), 0.4), here=True)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("[1/4, ") and lines[2].startswith("[2/9, ")
    assert lines[1] == "look 1 of at most 4: [a] on digits: 5 -> 12 seeds (not settled)"


def test_a_terminal_shows_how_far_each_run_is(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("polyak.lab.pace.time.monotonic", lambda: now[0])
    out = Console(file=io.StringIO(), width=80, force_terminal=True)
    progress = LiveProgress(Plan(), out)
    progress.began(spec(0))
    now[0] = 10.0
    progress.progress(spec(0), 50, 100)
    tasks = {task.description: task for task in progress._bars.tasks}
    run = tasks["digits [/] adamw[x] tuning seed 0"]
    assert (run.completed, run.total, run.fields["note"]) == (50, 100, "step 50/100")
    assert tasks["all runs"].fields["note"] == "0/4, 0:10, about 1:10 to go"  # 3.5 of 4 runs, 20 s each
    progress.ended(record(spec(0), 0.5), here=True)
    assert [task.description for task in progress._bars.tasks] == ["all runs"]


def test_what_was_slow_and_a_target_that_nobody_met_are_told():
    described, records = synthetic.slow_and_unmet()
    text = squeezed(printed(described, records))
    assert "theslowestruntook90s,47timesthemedianofitsmethod's:" in text
    assert "!norunatachosensettingmetthetarget,validationaccuracy0.9999;thenearestcameto0." in text
