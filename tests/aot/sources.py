"""Two small functions to compile, and what tests ask of their packages."""

import shutil
from pathlib import Path

import torch

from polyak import aot

F32 = torch.float32
CPU = torch.device("cpu")


def descend(weight, gradient, lr):
    """Written in place, as loops that threads share."""
    weight.copy_(weight - lr * gradient)


def products(a, b):
    """Returned, as one thread's work, of rows that are reduced."""
    return (a * b).sum(1, keepdim=True), a - b


def source(function=descend, name="a test's descend", **changes):
    n = aot.Array(F32, ("n",))
    facts = {
        "name": name,
        "function": function,
        "inputs": (n, n, aot.Array(torch.float64)),
        "device": CPU,
        "identity": "a test's descend",
    }
    return aot.Source(**{**facts, **changes})


def anonymous(function=products, **changes):
    """A source that is known by its graph alone."""
    rows = aot.Array(F32, ("rows", "columns"))
    facts = {"inputs": (rows, rows), "threads": "one", "identity": None}
    return source(function, "a test's products", **{**facts, **changes})


class Builder:
    """Stands for the compiler: copies a package that is there already, and counts."""

    def __init__(self, package: Path) -> None:
        self.package, self.built = package, []
        self.before = lambda: None

    def __call__(self, what, program, target, **how):
        self.built.append(what.name)
        self.before()
        shutil.copy(self.package, target)


def packages(folder):
    return sorted(folder.glob("*/*.pt2"))


def works(kernel):
    """Whether a kernel of descend descends."""
    weight, lr = torch.ones(5), torch.tensor(0.5, dtype=torch.float64)
    kernel.run([weight, torch.full((5,), 2.0), lr])
    return weight.tolist() == [0.0] * 5
