"""What holds of every built-in problem."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from polyak.lab.problems import BUILTIN, FROM_FILES, load
from polyak.lab.train import execute

ROOT = Path(__file__).parents[3]
SIZES = {
    "digits-cnn": 21_546,
    "digits-vit": 18_154,
    "noisy-digits": 21_546,
    "multitask-digits": 21_678,
    "wine-mlp": 5_251,
    "diabetes-regression": 4_929,
    "stdlib-lm": 1_067_776,
    "stdlib-lm-large-batch": 139_904,
    "heavy-tail": 5_313,
    "delay-k": 25_476,
    "deep-linear": 1_536,
    "rosenbrock": 2,
    "illconditioned": 128,
}
LANGUAGE = ("stdlib-lm", "stdlib-lm-large-batch")
# The loss of a model that knows nothing: it guesses, or says the mean of a target whose variance is 1.
CHANCE = {
    "digits-cnn": math.log(10),
    "digits-vit": math.log(10),
    "noisy-digits": math.log(10),
    "multitask-digits": math.log(10) + 2 * math.log(2),
    "wine-mlp": math.log(3),
    "diabetes-regression": 1.0,
    "stdlib-lm": math.log(256),
    "stdlib-lm-large-batch": math.log(256),
    "heavy-tail": 1.0,
    "delay-k": math.log(4),
    "deep-linear": 1.0,
}
NOT_TUNED = {"stdlib-lm"}  # minutes a run; its target is older than the script
ROWS = [name for name in CHANCE if name not in LANGUAGE]


def untrained(problem, seed=1):
    torch.manual_seed(seed)
    return problem.build_model(seed)


def first(problem, seed=1):
    return next(iter(problem.train_batches(seed)))


def tensors(batch):
    return [part for part in ([batch] if isinstance(batch, torch.Tensor) else batch) if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize("name", BUILTIN)
def test_it_trains_and_evaluates(name):
    problem = load(name).problem
    assert problem.name == name and problem.target is not None and problem.description.endswith(".")
    setting = {"lr": 1e-2, "execution": "eager"}
    outcome = execute(problem, "adamw", setting, 1, "test", steps=2 if name in LANGUAGE else 20)
    assert outcome.status == "finished", outcome.detail
    assert outcome.detail["parameters"] == SIZES[name]
    losses = [loss for _, loss in outcome.detail["train"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", CHANCE)
def test_an_untrained_model_knows_nothing(name):
    problem = load(name).problem
    with torch.no_grad():
        losses = [problem.loss(untrained(problem, seed), first(problem, seed)).item() for seed in range(1, 4)]
    assert sum(losses) / 3 == pytest.approx(CHANCE[name], rel=0.3)
    assert not problem.solved(problem.evaluate(untrained(problem).eval(), "validation"))


@pytest.mark.parametrize("name", CHANCE)
def test_a_seed_decides_model_and_batches(name):
    problem = load(name).problem
    for seed in (1, 2):
        pairs = zip(tensors(first(problem, seed)), tensors(first(problem, seed)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        models = zip(untrained(problem, seed).parameters(), untrained(problem, seed).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in models)
    assert not torch.equal(tensors(first(problem, 1))[0], tensors(first(problem, 2))[0])


@pytest.mark.parametrize("name", CHANCE)
def test_loading_it_again_gives_the_same_data(name):
    one, two = load(name).problem, load(name).problem
    assert all(torch.equal(a, b) for a, b in zip(tensors(first(one)), tensors(first(two)), strict=True))
    model = untrained(one).eval()
    with torch.no_grad():
        for split in ("validation", "test"):
            assert one.evaluate(model, split) == two.evaluate(model, split)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BUILTIN)
def test_a_model_on_a_gpu_is_judged_there(name):
    problem = load(name).problem
    model = untrained(problem).eval()
    with torch.no_grad():
        expected = problem.evaluate(model, "validation")
        assert problem.evaluate(model.cuda(), "validation") == pytest.approx(expected, rel=1e-3, abs=0.01)


class Spy(nn.Module):
    """Keeps the rows that a model sees."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, set()

    def forward(self, inputs):
        self.rows |= {row.numpy().tobytes() for row in inputs}
        return self.model(inputs)


@pytest.mark.parametrize("name", ROWS)
def test_no_row_is_in_two_splits(name):
    problem = load(name).problem
    seen = {split: Spy(untrained(problem).eval()) for split in ("train", "validation", "test")}
    with torch.no_grad():
        for seed in range(3):  # a part of an epoch is left out each time
            for batch in problem.train_batches(seed):
                problem.loss(seen["train"], batch)
        for split in ("validation", "test"):
            problem.evaluate(seen[split], split)
    rows = [spy.rows for spy in seen.values()]
    assert all(len(each) > 30 for each in rows)
    assert len(set.union(*rows)) == sum(map(len, rows))


def test_the_recorded_targets_are_those_in_the_code():
    recorded = json.loads((ROOT / "benchmarks/results/lab_targets.json").read_text())["problems"]
    assert list(recorded) == [name for name in CHANCE if name not in NOT_TUNED]
    for name, row in recorded.items():
        problem = load(name).problem
        assert (problem.target, problem.steps) == (row["target"], row["steps"]), name
        assert all(problem.solved(metric) for metric in row["metrics"])
        slack = min(abs(metric - row["target"]) for metric in row["metrics"])
        assert slack <= (0.01 if problem.higher_is_better else 0.1 * row["target"])


def test_the_page_lists_every_problem_with_its_steps_and_target():
    page = (ROOT / "docs/problems.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:3] == "| `"]
    rows = {re.match(r"`([\w-]+)", cells[0])[1]: cells for cells in lines}
    assert list(rows) == [*BUILTIN, *FROM_FILES]
    for name in BUILTIN:
        problem = load(name).problem
        assert f"{problem.steps:,}" in rows[name] and f"{problem.target:g}" in rows[name], name
