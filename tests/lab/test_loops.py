"""A loop of the user's own, by value."""

import math
from contextlib import suppress

import pytest
import torch
from torch import nn

from polyak.lab.loops import StopRun
from polyak.lab.problem import Problem
from polyak.lab.train import execute
from tests.lab.conftest import quadratic, without_times

STEPS = 30


def own(train, **changes):
    """A problem with a loop of its own."""
    return Problem(**{"name": "own", "metric": "distance", "higher_is_better": False, "train": train, **changes})


def by_hand(make_optimizer, seed, report, split):
    """The loop over the parts of the quadratic, written out."""
    problem = quadratic()
    model = problem.build_model(seed)
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / max(1, round(0.05 * STEPS))) * 0.5 * (1 + math.cos(math.pi * t / STEPS))
    )
    batches = problem.train_batches(seed)
    for step in range(1, STEPS + 1):
        loss = problem.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step, loss=loss)
        if step in {math.ceil(STEPS * i / 25) for i in range(1, 26)}:
            report(step, problem.evaluate(model, "validation"))
    return problem.evaluate(model, split)


def run(train, setting=None, split="validation", seed=1, method="sgd", steps=None, bars=(), **changes):
    setting = {"lr": 0.1} if setting is None else setting
    return execute(own(train, **changes), method, setting, seed, split, steps, bars)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_declared_problem_is_a_loop_like_any_other(split):
    mine = run(by_hand, split=split, steps=STEPS, target=0.5)
    declared = execute(quadratic(), "sgd", {"lr": 0.1}, 1, split, STEPS)
    assert mine.status == "finished"
    assert mine.metric == declared.metric
    assert without_times(mine.detail) == without_times(declared.detail)


def small(make_optimizer, **fixed):
    model = nn.Linear(4, 1)
    return model, make_optimizer(model, **fixed)


def test_fixed_arguments_reach_the_method():
    made = []

    def train(make_optimizer, seed, report, split):
        made.append(small(make_optimizer, momentum=0.9)[1])
        return 1.0

    assert run(train).status == "finished"
    assert (made[0].param_groups[0]["momentum"], made[0].param_groups[0]["lr"]) == (0.9, 0.1)


def test_a_fixed_argument_that_is_tuned_is_refused():
    outcome = run(lambda make_optimizer, seed, report, split: small(make_optimizer, lr=3.0))
    assert outcome.status == "failed"
    assert "make_optimizer(lr=3.0): these are set for sgd; leave them out here" in outcome.detail["reason"]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ({"lr": 1e-3}, "make_optimizer: a group has lr=0.001, which is set for sgd; leave it out, or scale it in"),
        ({"weight_decay": 0.1}, "a group has weight_decay=0.1, which is set for sgd"),
        ({"weight_decay": 0.0}, None),  # as the lab's own groups of biases
        ({"momentum": 0.9}, None),
    ],
)
def test_a_group_cannot_take_a_tuned_value_back(group, reason):
    made = []

    def train(make_optimizer, seed, report, split):
        one, other = nn.Linear(4, 1), nn.Linear(4, 1)
        made.append(make_optimizer([{"params": list(one.parameters())}, {"params": list(other.parameters()), **group}]))
        return 1.0

    outcome = run(train, {"lr": 0.1, "weight_decay": 0.01})
    if reason is not None:
        assert outcome.status == "failed" and reason in outcome.detail["reason"]
        return
    assert outcome.status == "finished"
    expected = {"lr": 0.1, "weight_decay": 0.01, **group}
    assert expected.items() <= made[0].param_groups[1].items() and made[0].param_groups[0]["weight_decay"] == 0.01


def test_parameters_may_come_from_a_generator():
    def train(make_optimizer, seed, report, split):
        return float(len(make_optimizer(nn.Linear(4, 1).parameters()).param_groups[0]["params"]))

    assert run(train).metric == 2.0


def test_two_optimizers_count_together():
    def train(make_optimizer, seed, report, split):
        models = nn.Linear(4, 1), nn.Linear(2, 3, bias=False)
        optimizers = [make_optimizer(models[0]), make_optimizer(models[1].parameters())]
        for _ in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                sum(p.sum() for p in model.parameters()).backward()
                optimizer.step()
        report(3, 1.0)
        return 1.0

    detail = run(train, {"lr": 0.1}, method="adamw").detail
    assert detail["parameters"] == 4 + 1 + 6
    assert detail["state_bytes"] >= 2 * 4 * 11
    assert detail["timing"]["optimizer_ms"] > 0


def test_a_loop_that_makes_no_optimizer_compares_nothing():
    assert "never called make_optimizer()" in run(lambda *_: 1.0).detail["reason"]


def reporting(*reports, value=1.0):
    """A loop that reports and returns."""

    def train(make_optimizer, seed, report, split):
        small(make_optimizer)
        for arguments, more in reports:
            report(*arguments, **more)
        return value

    return train


def test_reports_are_the_curves():
    detail = run(
        reporting(((10,), {"loss": torch.tensor(2.0)}), ((10, 0.5), {}), ((20, torch.tensor(0.4)), {"loss": 1.0})),
        target=0.45,
    ).detail
    assert detail["train"] == [[10, 2.0], [20, 1.0]]
    assert detail["validation"] == [[10, 0.5], [20, pytest.approx(0.4)]]
    assert detail["target_step"] == 20
    assert run(reporting()).detail["train"] == []


def test_losses_of_every_step_become_windows():
    detail = run(reporting(*(((step,), {"loss": step / 10}) for step in range(1, 601)))).detail
    assert detail["train"] == [[10 * i, pytest.approx(i - 0.45)] for i in range(1, 61)]


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (((1, "0.5"), {}), "distance must be a number, got '0.5'"),
        (((1,), {"loss": "low"}), "report(loss=...) must be a number, got 'low'"),
        (((1.5, 0.5), {}), "step must be an integer from 0, the last one, on; got 1.5"),
        (((-1, 0.5), {}), "step must be an integer from 0, the last one, on; got -1"),
        (((1, {"accuracy": 0.5}), {}), "the metrics have no 'distance'"),
    ],
)
def test_reports_that_make_no_sense_fail_and_are_named(report, reason):
    outcome = run(reporting(report))
    assert outcome.status == "failed" and reason in outcome.detail["reason"]


@pytest.mark.parametrize("value", [None, "0.5", {"accuracy": 1.0}])
def test_what_is_no_result_fails(value):
    assert run(reporting(value=value)).status == "failed"


def test_the_best_of_several_results_is_the_users_to_say():
    outcome = run(reporting(((1, 0.3), {}), ((2, 0.7), {}), value={"distance": 0.3, "at": 1}))
    assert outcome.metric == 0.3 and outcome.detail["metrics"] == {"at": 1.0}


def test_a_run_is_stopped_at_the_first_value_behind_its_bar():
    seen = []

    def train(make_optimizer, seed, report, split):
        small(make_optimizer)
        try:
            for step in range(10, 60, 10):
                seen.append(step)
                report(step, 1.0 / step)
        except Exception as error:  # what a careful script does
            raise AssertionError("it is no Exception") from error

    outcome = run(train, bars=((25, -1.0),))
    assert seen == [10, 20, 30]
    assert (outcome.status, outcome.metric, outcome.detail["validation"][-1]) == ("stopped", None, [30, 1 / 30])
    assert outcome.detail["step"] == 30 and "step 25" in outcome.detail["reason"]


def test_a_loop_that_swallows_the_stop_is_stopped_all_the_same():
    def train(make_optimizer, seed, report, split):
        small(make_optimizer)
        for step in range(10):
            with suppress(BaseException):
                report(step, 0.5)
        return 7.0

    outcome = run(train, bars=((3, -1.0),))
    assert (outcome.status, outcome.metric, outcome.detail["step"]) == ("stopped", None, 3)
    assert not issubclass(StopRun, Exception)


def test_weights_that_are_lost_end_the_run_at_the_next_report():
    def train(make_optimizer, seed, report, split):
        model, _ = small(make_optimizer)
        report(1, 0.5)
        model.weight.data.fill_(math.nan)
        report(2, 0.5)
        raise AssertionError("it went on")

    outcome = run(train)
    assert (outcome.status, outcome.metric) == ("diverged", None)
    assert (outcome.detail["reason"], outcome.detail["step"]) == ("weights are not finite", 2)


def test_a_script_that_exits_is_a_failed_run():
    def train(make_optimizer, seed, report, split):
        raise SystemExit("no data here")

    assert run(train).detail["reason"].startswith("SystemExit: no data here")


def test_the_generators_are_seeded():
    drawn = []

    def train(make_optimizer, seed, report, split):
        import random

        import numpy

        drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
        small(make_optimizer)
        return 1.0

    for seed in (1, 1, 2):
        run(train, seed=seed)
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))
