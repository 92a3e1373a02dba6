"""The look before the journey, and the fingerprint."""

from dataclasses import replace

import pytest

from polyak.lab.check import firsts, look_here
from polyak.lab.entries import entries
from polyak.lab.errors import BadInput
from polyak.lab.loops import StopRun
from polyak.lab.train import EVALUATIONS
from tests.lab.conftest import quadratic
from tests.lab.test_loops import by_hand, own, small


def counting(calls, wrong=None):
    problem = quadratic()

    def evaluate(model, split):
        calls.append(split)
        if wrong and split in wrong:
            return wrong[split]() if callable(wrong[split]) else wrong[split]
        return problem.evaluate(model, split)

    return replace(problem, evaluate=evaluate)


def test_a_sound_problem():
    calls = []
    found = look_here(counting(calls), firsts(entries(["sgd", "muon"])), 30)
    assert calls.count("test") == 1
    assert found.whole and found.seconds_per_step > 0 and found.seconds_per_evaluation > 0
    assert found.seconds_per_run == 30 * found.seconds_per_step + EVALUATIONS * found.seconds_per_evaluation
    assert "test" not in repr(found).lower()


def fails():
    raise RuntimeError("only here")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"test": fails}, r"quadratic fails: RuntimeError: only here \(line \d+ of .*test_check.py\)"),
        ({"validation": fails}, "RuntimeError: only here"),
        ({"test": "0.5"}, "distance must be a number, got '0.5'"),
        ({"validation": None}, "distance must be a number, got None"),
        ({"validation": float("nan")}, "'distance' is nan in every evaluation, though all weights are finite"),
    ],
)
def test_an_evaluation_that_fails_or_is_never_a_number(wrong, message):
    with pytest.raises(BadInput, match=message) as caught:
        look_here(counting([], wrong), firsts(entries(["sgd"])), 30)
    assert "\n" not in str(caught.value)


def test_a_loss_that_fails_at_once_and_one_that_fails_later():
    with pytest.raises(BadInput, match="quadratic fails: RuntimeError: only here"):
        look_here(quadratic(loss=lambda model, batch: fails()), firsts(entries(["sgd"])), 30)
    problem = quadratic()

    def loss(model, batch):
        return problem.loss(model, batch) if model.weight.grad is None else fails()

    with pytest.raises(BadInput, match="quadratic fails with sgd: RuntimeError: only here"):
        look_here(quadratic(loss=loss), firsts(entries(["sgd", "adamw"])), 30)


@pytest.mark.parametrize("part", ["loss", "evaluate", "build_model"])
def test_a_stop_that_a_part_raises_is_one_line(part):
    def stop(*_):
        raise StopRun("enough")

    with pytest.raises(BadInput, match=r"quadratic fails: StopRun: enough .*: return the metric to end it early"):
        look_here(quadratic(**{part: stop}), firsts(entries(["sgd"])), 30)


def test_a_loop_of_ones_own_is_run_to_its_test():
    splits, steps = [], []

    def train(make_optimizer, seed, report, split):
        splits.append(split)

        def counted(step, *values, **more):
            steps.append(step)
            report(step, *values, **more)

        return by_hand(make_optimizer, seed, counted, split)

    found = look_here(own(train), firsts(entries(["sgd", "adamw"])), None)
    assert splits == ["validation", "test", "validation", "validation"]  # one run for each method between fingerprints
    assert steps.count(30) == 2 and steps[-1] == 2  # the second method takes a few steps only
    assert not found.keeps_state and found.leaves == ()
    assert found.whole and found.seconds_per_run > 0 and found.seconds_per_evaluation is None


def test_a_loop_that_takes_too_long_is_left(monkeypatch):
    monkeypatch.setattr("polyak.lab.check.LOOK_SECONDS", 0.0)
    found = look_here(own(by_hand, steps=30), firsts(entries(["sgd"])), 30)
    assert not found.whole and found.seconds_per_step > 0
    assert look_here(own(by_hand), firsts(entries(["sgd"])), None).seconds_per_run is None


@pytest.mark.parametrize("reports", [0, 1])
def test_a_loop_whose_metric_is_never_a_number(reports):
    def train(make_optimizer, seed, report, split):
        small(make_optimizer)
        for step in range(reports):
            report(step, float("nan"))
        return float("nan")

    with pytest.raises(BadInput, match="own: 'distance' is nan in every evaluation"):
        look_here(own(train), firsts(entries(["sgd"])), None)


def test_a_loop_that_fixes_what_is_tuned():
    with pytest.raises(BadInput, match=r"own fails with sgd: .*make_optimizer\(lr=1\): these are set"):
        look_here(own(lambda make_optimizer, *_: small(make_optimizer, lr=1)), firsts(entries(["sgd"])), None)


def test_what_a_run_leaves_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "old").touch()
    order = [3, 1, 2, 0]

    def train(make_optimizer, seed, report, split):
        order.append(order.pop(0))
        (tmp_path / "checkpoints" / "best.pt").touch()
        (report.folder / "best.pt").touch()
        model, optimizer = small(make_optimizer)
        (order[0] * model.weight.sum()).backward()
        optimizer.step()
        return 1.0

    found = look_here(own(train), firsts(entries(["sgd"])), None)
    assert found.keeps_state and found.leaves == ("checkpoints/best.pt",)
    state, files = found.warnings(is_here=False)
    assert state.endswith("each run gets a process of its own, which takes longer; make it anew in every run")
    assert "leaves checkpoints/best.pt in the working folder" in files and "report.folder" in files
    assert "in every run, or give the function" in found.warnings(is_here=True)[0]
