"""One run, by value."""

import math
from dataclasses import replace

import pytest
import torch

from polyak.lab.train import CURVE_POINTS, EVALUATIONS, execute, learning_rate_factor
from tests.lab.conftest import quadratic, without_times


def run(problem, method="sgd", seed=1, split="validation", steps=None, **setting):
    return execute(problem, method, {"lr": 0.1, **setting}, seed, split, steps or problem.steps)


def test_learning_rate_factor():
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([(i + 1) / 5 * 0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(5)])
    assert factors[50] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert learning_rate_factor(0, 1) == 1.0


def test_sgd_on_a_quadratic_is_the_recursion_by_hand():
    problem = quadratic(train_batches=lambda seed: iter([0.0] * 100), steps=10)
    torch.manual_seed(3)
    weight = problem.build_model(3).weight[0].detach().clone()
    for step in range(10):
        weight -= 0.1 * learning_rate_factor(step, 10) * (weight - torch.arange(4.0))
    expected = 0.5 * (weight - torch.arange(4.0)).square().sum().item()
    assert run(problem, seed=3).metric == pytest.approx(expected, rel=1e-5)


def test_a_run_depends_on_its_seed_and_on_nothing_else():
    first, again, other = run(quadratic(), seed=1), run(quadratic(), seed=1), run(quadratic(), seed=2)
    assert without_times(first.detail) == without_times(again.detail)
    assert first.metric == again.metric != other.metric


def test_curves_are_windows_of_all_steps():
    problem = quadratic(steps=1000)
    detail = run(problem).detail
    steps = [step for step, _ in detail["train"]]
    assert len(steps) == CURVE_POINTS and steps[-1] == 1000 and steps == sorted(set(steps))
    assert [step for step, _ in detail["validation"]] == [40 * i for i in range(1, EVALUATIONS + 1)]
    assert [step for step, _ in run(problem, steps=3).detail["validation"]] == [1, 2, 3]


def test_the_target_is_met_at_the_first_evaluation_that_meets_it():
    detail = run(quadratic(steps=100)).detail
    first = next(step for step, metric in detail["validation"] if metric <= 0.5)
    assert detail["target_step"] == first and detail["timing"]["target_seconds"] > 0
    assert run(quadratic(target=-1.0)).detail["target_step"] is None
    assert run(quadratic(target=None)).detail["target_step"] is None


def test_the_test_split_is_read_once_and_only_when_judging_on_it():
    asked = []
    problem = quadratic(evaluate=lambda model, split: asked.append(split) or 1.0)
    assert run(problem, split="validation").status == "finished"
    assert set(asked) == {"validation"}
    asked.clear()
    run(problem, split="test")
    assert asked.count("test") == 1 and asked[-1] == "test"


def test_evaluation_is_in_eval_mode_and_without_gradients():
    def evaluate(model, split):
        assert not model.training and not torch.is_grad_enabled()
        return 0.0

    assert run(quadratic(evaluate=evaluate)).status == "finished"


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e6])
def test_a_loss_that_blows_up_is_a_diverged_run(factor):
    problem = quadratic()
    calls = []

    def loss(model, batch):
        calls.append(1)
        return problem.loss(model, batch) * (factor if len(calls) > 5 else 1.0)

    outcome = run(replace(problem, loss=loss, evaluate=lambda model, split: 0.0))
    assert (outcome.status, outcome.metric) == ("diverged", None)
    assert len(calls) == 6


def test_too_large_a_learning_rate_diverges():
    outcome = run(quadratic(steps=200), lr=50.0)
    assert (outcome.status, outcome.metric) == ("diverged", None)


def test_a_metric_that_is_not_finite_is_a_diverged_run():
    assert run(quadratic(evaluate=lambda model, split: float("nan"))).status == "diverged"


def test_an_exception_is_a_failed_run_with_its_traceback():
    def loss(model, batch):
        raise RuntimeError("no such luck")

    outcome = run(quadratic(loss=loss))
    assert (outcome.status, outcome.metric) == ("failed", None)
    assert "RuntimeError: no such luck" in outcome.detail["error"] and "in loss" in outcome.detail["error"]


def test_epochs_are_asked_for_with_different_seeds():
    asked = []

    def train_batches(seed):
        asked.append(seed)
        return iter([0.0] * 10)

    assert run(quadratic(train_batches=train_batches), seed=5).status == "finished"
    assert asked[0] == 5 and len(set(asked)) == len(asked) == 3


def test_no_batches_at_all():
    outcome = run(quadratic(train_batches=lambda seed: iter([])))
    assert outcome.status == "failed" and "gave no batch" in outcome.detail["error"]


def test_state_and_parameters_are_measured():
    detail = run(quadratic(), method="adamw").detail
    assert detail["parameters"] == 4
    assert detail["state_bytes"] >= 2 * 4 * 4
