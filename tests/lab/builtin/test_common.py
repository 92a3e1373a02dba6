"""Rows, splits and batches, by value."""

import math

import pytest
import torch
from torch import nn

from polyak.lab.builtin.common import CHUNK, CLASSES, NUMBERS, PROBABILITIES, divide, epoch, on_rows, standardized

ROWS = torch.arange(10.0)[:, None], torch.arange(10)


def test_every_row_is_in_one_split_with_its_target():
    data = divide(ROWS, {"train": 6, "validation": 3, "test": 1})
    assert [len(targets) for _, targets in data.values()] == [6, 3, 1]
    assert sorted(torch.cat([targets for _, targets in data.values()]).tolist()) == list(range(10))
    assert all(torch.equal(inputs[:, 0].long(), targets) for inputs, targets in data.values())
    again = divide(ROWS, {"train": 6, "validation": 3, "test": 1})
    assert all(torch.equal(data[split][1], again[split][1]) for split in data)


def test_columns_are_standardized_by_the_training_split_alone():
    columns = standardized({"train": torch.tensor([[1.0, 5.0], [3.0, 9.0]]), "test": torch.tensor([[2.0, 11.0]])})
    half = math.sqrt(0.5)
    assert columns["train"].flatten().tolist() == pytest.approx([-half, -half, half, half])
    assert columns["test"][0].tolist() == pytest.approx([0.0, 4 / math.sqrt(8)])


@pytest.mark.parametrize(("batch", "count"), [(3, 3), (5, 2), (10, 1)])
def test_an_epoch_is_whole_batches_of_different_rows(batch, count):
    batches = list(epoch(ROWS, batch, torch.Generator().manual_seed(1)))
    assert [len(targets) for _, targets in batches] == [batch] * count
    seen = torch.cat([targets for _, targets in batches])
    assert len(seen.unique()) == len(seen)
    assert all(torch.equal(inputs[:, 0].long(), targets) for inputs, targets in batches)


def test_scores_are_those_of_each_row():
    logits, labels = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([1, 1])
    assert CLASSES.scores(logits, labels).tolist() == [True, False]
    assert PROBABILITIES.scores(logits, labels).tolist() == pytest.approx([-math.log(0.75), math.log(2)])
    assert NUMBERS.scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]])).tolist() == [4.5]
    for task in (CLASSES, PROBABILITIES):
        assert task.loss(logits, labels).item() == pytest.approx((math.log(2) - math.log(0.75)) / 2)


def test_an_evaluation_is_the_mean_over_all_rows_however_many_are_judged_at_a_time():
    count = 2 * CHUNK + 1
    rows = torch.arange(float(count))[:, None], torch.zeros(count, 1)
    problem = on_rows("x", {"test": rows}, NUMBERS, nn.Identity, batch=1, steps=1, target=None, description="")
    expected = sum(i * i for i in range(count)) / count
    assert problem.evaluate(nn.Identity(), "test") == pytest.approx(expected, rel=1e-6)
