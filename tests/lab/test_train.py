"""One run, by value."""

import math
from dataclasses import replace

import pytest
import torch

from polyak.lab.loops import CURVE_POINTS, RUNNING
from polyak.lab.problem import SCHEDULES
from polyak.lab.train import EVALUATIONS, execute
from tests.lab.conftest import quadratic, without_times


def run(problem, method="sgd", seed=1, split="validation", steps=None, **setting):
    return execute(problem, method, {"lr": 0.1, **setting}, seed, split, steps or problem.steps)


def factors(schedule, steps):
    return [SCHEDULES[schedule](step, steps) for step in range(steps)]


def test_schedules():
    cosine = [0.5 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert factors("cosine", 100) == pytest.approx(cosine)
    assert factors("warmup-cosine", 100) == pytest.approx(
        [min(1, (i + 1) / 5) * factor for i, factor in enumerate(cosine)]
    )
    assert factors("constant", 3) == [1, 1, 1]
    for schedule in SCHEDULES:
        assert all(0 < factor <= 1 for steps in (1, 2, 3, 10) for factor in factors(schedule, steps))


@pytest.mark.parametrize("steps", [10, 37, 100])
def test_one_cycle_is_that_of_torch(steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        if len(expected) < steps:
            theirs.step()
    assert factors("onecycle", steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_sgd_on_a_quadratic_is_the_recursion_by_hand():
    problem = quadratic(train_batches=lambda seed: iter([0.0] * 100), steps=10)
    torch.manual_seed(3)
    weight = problem.build_model(3).weight[0].detach().clone()
    for step in range(10):
        weight -= 0.1 * SCHEDULES["warmup-cosine"](step, 10) * (weight - torch.arange(4.0))
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


@pytest.mark.parametrize(
    ("factor", "reason", "step"),
    [
        (float("nan"), "weights are not finite", 6),
        (float("inf"), "weights are not finite", 6),
        (1e3, "the running training loss is", 5 + RUNNING // 2),
    ],
)
def test_a_loss_that_stays_lost_is_a_diverged_run(factor, reason, step):
    problem, calls = quadratic(schedule="constant", steps=50), []

    def loss(model, batch):
        calls.append(1)
        return problem.loss(model, batch) * (factor if len(calls) > 5 else 1.0)

    outcome = run(replace(problem, loss=loss, evaluate=lambda model, split: 0.0))
    assert (outcome.status, outcome.metric) == ("diverged", None)
    assert outcome.detail["reason"].startswith(reason)
    assert step <= outcome.detail["step"] == len(calls) <= step + 1


@pytest.mark.parametrize("spike", [312.0, float("inf"), float("nan")])
def test_outlier_batches_are_no_divergence(spike):
    """Losses .1, .1, 312, .1 with nothing wrong."""
    problem, calls = quadratic(), []

    def loss(model, batch):
        calls.append(1)
        return problem.loss(model, batch) + (1e3 * spike if len(calls) % 4 == 0 else 0.0)

    outcome = run(replace(problem, loss=loss))
    assert outcome.status == "finished"
    assert outcome.metric == pytest.approx(run(problem).metric)


def test_too_large_a_learning_rate_diverges():
    outcome = run(quadratic(steps=200), lr=50.0)
    assert (outcome.status, outcome.metric) == ("diverged", None)
    assert 0 < outcome.detail["step"] < 200 and outcome.detail["reason"]


def test_a_metric_that_is_not_finite_is_a_diverged_run():
    outcome = run(quadratic(evaluate=lambda model, split: float("nan")))
    assert (outcome.status, outcome.detail["reason"]) == ("diverged", "the validation metric is nan")
    assert outcome.detail["step"] == 30


def test_an_exception_is_a_failed_run_with_its_traceback():
    def loss(model, batch):
        raise RuntimeError("no such luck")

    outcome = run(quadratic(loss=loss))
    assert (outcome.status, outcome.metric) == ("failed", None)
    assert "RuntimeError: no such luck" in outcome.detail["error"] and "in loss" in outcome.detail["error"]
    assert outcome.detail["reason"].startswith("RuntimeError: no such luck (line ")
    assert outcome.detail["reason"].endswith("test_train.py)") and outcome.detail["step"] == 0


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


def test_accumulation_is_the_mean_of_the_batches():
    whole = quadratic(train_batches=lambda seed: iter([0.25] * 100))
    halves = quadratic(train_batches=lambda seed: iter([0.0, 0.5] * 50), accumulation=2)
    assert run(halves).metric == pytest.approx(run(whole).metric, rel=1e-6)
    assert run(halves).detail["train"][-1][0] == 30


def test_clipping_bounds_the_whole_gradient():
    problem = quadratic(steps=1, clip=0.5, schedule="constant")
    torch.manual_seed(1)
    weight = problem.build_model(1).weight[0].detach()
    moved = []
    run(replace(problem, evaluate=lambda model, split: moved.append(model.weight[0].detach() - weight) or 0.0))
    assert moved[0].norm().item() == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_a_schedule_of_ones_own_is_asked_for_the_steps_of_the_run():
    asked = []
    outcome = run(quadratic(steps=3, schedule=lambda step, steps: asked.append((step, steps)) or 1.0))
    assert outcome.status == "finished"
    assert set(asked) == {(0, 3), (1, 3), (2, 3)}


@pytest.mark.parametrize(("every", "steps", "at"), [(10, 30, [10, 20, 30]), (7, 16, [7, 14, 16]), (99, 5, [5])])
def test_how_often_a_run_is_evaluated(every, steps, at):
    assert [step for step, _ in run(quadratic(steps=steps, evaluate_every=every)).detail["validation"]] == at


def test_several_metrics_one_of_which_is_judged():
    problem = quadratic()

    def evaluate(model, split):
        return {"distance": problem.evaluate(model, split), "size": model.weight.norm()}

    outcome = run(replace(problem, evaluate=evaluate))
    assert outcome.metric == run(problem).metric
    assert list(outcome.detail["metrics"]) == ["size"] and outcome.detail["metrics"]["size"] > 0
    lost = run(replace(problem, evaluate=lambda model, split: {"size": 1.0}))
    assert lost.status == "failed" and "the metrics have no 'distance'; known: size" in lost.detail["reason"]


def test_scores_of_examples_are_averaged_and_kept_for_the_test():
    def evaluate(model, split):
        return torch.tensor([True, False, True, True])

    problem = quadratic(evaluate=evaluate)
    outcome = run(problem, split="test")
    assert outcome.metric == 0.75 and outcome.detail["scores"] == [1.0, 0.0, 1.0, 1.0]
    assert "scores" not in run(problem).detail


@pytest.mark.parametrize("value", ["0.9", None, [], [[1.0]], torch.zeros(2, 2)])
def test_what_is_no_metric_fails_and_is_named(value):
    outcome = run(quadratic(evaluate=lambda model, split: value))
    assert outcome.status == "failed" and "distance must be a number, got" in outcome.detail["reason"]


def test_model_and_batches_are_put_on_the_device():
    seen = []

    def loss(model, batch):
        seen.append((model.weight.device.type, batch["noise"][0].device.type, batch["name"]))
        return model.weight.sum()

    def batches(seed):
        yield {"noise": (torch.zeros(4),), "name": "first"}

    run(quadratic(loss=loss, train_batches=batches, device="meta", steps=1))
    assert seen == [("meta", "meta", "first")]


def test_waiting_for_data_counts_as_time_to_the_target_and_evaluating_does_not(monkeypatch):
    """A clock that data move by 1 s a batch and each evaluation by 100 s."""
    now = [0.0]
    monkeypatch.setattr("polyak.lab.loops.time.perf_counter", lambda: now[0])
    problem = quadratic(steps=100)

    def batches(seed):
        for batch in problem.train_batches(seed):
            now[0] += 1.0
            yield batch

    def evaluate(model, split):
        now[0] += 100.0
        return problem.evaluate(model, split)

    detail = run(replace(problem, train_batches=batches, evaluate=evaluate)).detail
    assert detail["timing"]["target_seconds"] == detail["target_step"] > 0
    assert detail["timing"]["step_ms"] == 1000.0
