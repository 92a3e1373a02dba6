"""scikit-learn's tables: the right rows, standardized, and as hard as they should be."""

import pytest
import torch

from polyak.lab.builtin import tables
from polyak.lab.problems import load


def epoch(problem):
    batches = list(problem.train_batches(1))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_all_rows_are_used():
    assert sum(tables.WINE_SIZES.values()) == 178 and sum(tables.DIABETES_SIZES.values()) == 442


@pytest.mark.parametrize(("name", "columns"), [("wine-mlp", 13), ("diabetes-regression", 10)])
def test_columns_have_mean_zero_and_variance_one(name, columns):
    inputs, _ = epoch(load(name).problem)
    assert inputs.shape[1] == columns
    assert inputs.mean(dim=0).abs().max() < 0.15 and (inputs.std(dim=0) - 1).abs().max() < 0.15


def test_the_wines_have_three_classes():
    _, labels = epoch(load("wine-mlp").problem)
    assert labels.unique().tolist() == [0, 1, 2]


def test_half_of_the_variance_of_diabetes_is_noise_for_a_linear_model():
    problem = load("diabetes-regression").problem
    inputs, outputs = epoch(problem)
    solution = torch.linalg.lstsq(inputs, outputs).solution
    linear = torch.nn.Linear(10, 1)
    with torch.no_grad():
        linear.weight.copy_(solution.T)
        linear.bias.zero_()
        assert 0.35 < problem.evaluate(linear, "validation") < 0.7
        assert 0.35 < problem.evaluate(linear, "test") < 0.7
