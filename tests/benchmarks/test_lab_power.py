"""benchmarks/lab_power.py: what it demands of the verdict, on fewer repeats; and the script itself."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def power(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lab_power

    return lab_power


# In the last world A/A is near its limit; benchmarks/results/lab_power.json has it.
@pytest.mark.slow
@pytest.mark.parametrize("world", range(5))
def test_the_same_method_is_rarely_called_different(power, world):
    for row in power.rates(power.WORLDS[world], 200, counts=(5, 8, 20)):
        assert row["called"] <= 0.05


@pytest.mark.slow
def test_none_of_six_equal_methods_is_called_different(power):
    for row in power.rates(power.WORLDS[1], 200, names=6, counts=(5, 8, 20)):
        assert row["called"] <= 0.05


@pytest.mark.slow
def test_two_standard_deviations_are_found(power):
    found = power.rates(power.WORLDS[1], 200, shift=2.0)
    # Power rises; a rate of .9 over 200 repeats has a standard error of .02.
    assert all(before["better"] <= after["better"] + 0.02 for before, after in pairwise(found))
    assert found[2]["seeds"] == 8
    assert found[2]["better"] >= 0.8


def test_a_few_repeats_of_both(power):
    same = power.rates(power.WORLDS[1], 40, counts=(5, 20))
    assert all(row["called"] <= 0.1 for row in same)
    found = power.rates(power.WORLDS[1], 40, shift=2.0, counts=(5, 8, 20))
    assert found[0]["better"] <= found[1]["better"] <= found[2]["better"]
    assert found[1]["better"] >= 0.7


@pytest.mark.slow
def test_looking_several_times_does_not_call_more(power):
    for world in power.WORLDS[:2]:
        assert power.cleared(world, 200)["called"] <= 0.05


def test_seeds_are_added_where_a_difference_is_open(power):
    same, found = power.cleared(power.WORLDS[0], 30), power.cleared(power.WORLDS[0], 30, shift=2.0)
    assert same["called"] <= 0.1 < 0.4 <= found["better"] and 5 < found["seeds"] <= 40


def test_t_intervals_of_few_values_cover_what_bca_does_not(power):
    rows = {(row["values"], row["seeds"]): row for row in power.coverage(400)}
    assert rows["normal", 5]["t"] >= 0.93 > rows["normal", 5]["bca"] + 0.03


def test_the_script(tmp_path):
    path = tmp_path / "lab_power.json"
    command = [sys.executable, str(BENCHMARKS / "lab_power.py"), "--quick", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["repeats"] == 1
    assert [row["seeds"] for row in report["worlds"][0]["same"]] == [5, 6, 8, 9, 12, 20]
    assert report["worlds"][0]["clear"]["same"]["seeds"] >= 5 and "until clear: A/A called in" in done.stdout
    root = ElementTree.fromstring(path.with_suffix(".svg").read_text())
    assert len([one for one in root.iter() if one.tag.endswith("polyline")]) == 2 * len(report["worlds"])
