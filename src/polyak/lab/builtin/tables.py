"""Two of scikit-learn's small tables: the wines (178 rows, 3 classes) and diabetes (442 rows, a number to predict).

Each is shuffled once, the same way always, and cut; columns are standardized by the training split.
"""

from __future__ import annotations

import torch
from torch import nn

from polyak.lab.builtin.common import NUMBERS, PROBABILITIES, divide, on_rows, standardized
from polyak.lab.errors import require
from polyak.lab.problems import Problem

WINE_SIZES = {"train": 106, "validation": 36, "test": 36}
DIABETES_SIZES = {"train": 266, "validation": 88, "test": 88}
WIDTH = 64


def _perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )


def wine() -> Problem:
    """A perceptron that tells three wines apart."""
    table = require("sklearn.datasets").load_wine()
    rows = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target, dtype=torch.int64)
    data = divide(rows, WINE_SIZES)
    inputs = standardized({split: x for split, (x, _) in data.items()})
    return on_rows(
        "wine-mlp",
        {split: (inputs[split], classes) for split, (_, classes) in data.items()},
        PROBABILITIES,
        lambda: _perceptron(13, 3),
        batch=16,
        steps=1000,
        target=0.17,
        description="A perceptron of 5 thousand parameters on 13 measurements of 106 wines of 3 kinds: few rows, where "
        "being too sure is what costs.",
    )


def diabetes() -> Problem:
    """A perceptron that predicts how far diabetes advances in a year."""
    table = require("sklearn.datasets").load_diabetes()
    rows = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target, dtype=torch.float32)[:, None]
    data = divide(rows, DIABETES_SIZES)
    inputs = standardized({split: x for split, (x, _) in data.items()})
    outputs = standardized({split: y for split, (_, y) in data.items()})
    return on_rows(
        "diabetes-regression",
        {split: (inputs[split], outputs[split]) for split in data},
        NUMBERS,
        lambda: _perceptron(10, 1),
        batch=32,
        steps=1000,
        target=0.47,
        description="A perceptron of 5 thousand parameters on 10 measurements of 266 patients; half of the variance is "
        "noise, and the error counts in units of the variance.",
    )
