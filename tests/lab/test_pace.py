"""How far a comparison is, in words."""

import pytest

from polyak.lab import pace
from tests.lab.test_terminal import Plan, record, spec


def test_runs_under_way_count_by_their_share(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    found = pace.Pace(Plan())
    assert found.words() == "0/4"
    run = found.began(spec(0))
    assert (run.title, run.place) == ("digits [/] adamw[x] tuning seed 0", "step 0/100")
    now[0] = 10.0
    found.progress(spec(0), 50, 100)
    assert (run.place, run.seconds, run.share) == ("step 50/100", 10.0, 0.5)
    assert found.words() == "0/4, 0:10, about 1:10 to go"  # 3.5 of 4 runs, 20 s each
    assert found.ended(record(spec(0), 0.5), here=True) is run
    assert found.ended(record(spec(1), 0.5), here=False) is None
    assert found.words() == "2/4, 0:10, about 0:20 to go"  # what was found took no time


def test_a_run_of_unknown_length_counts_when_it_has_ended():
    run = pace.UnderWay(spec(0), 0.0, 30, None)
    assert (run.share, run.place) == (0.0, "step 30")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.9, "1:15"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert pace.clock(seconds) == text
