"""What functions and objects are made of, beyond notebooks (see test_carried.py)."""

import functools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from polyak.lab.contents import Contents
from polyak.lab.errors import BadInput
from polyak.lab.problems import load

MODULE = """
from polyak.lab import Problem
import factory_helper

def made(noise):
    def problem():
        def train(make_optimizer, seed, report, split):
            return noise
        return Problem(name="f", train=train, metric="m", higher_is_better=False)
    return problem

def plain(noise=1.0):
    return made(noise)()

class Kept:
    def __init__(self, noise):
        self.noise = noise

    def __call__(self):
        return made(self.noise)()
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "factory_helper.py").write_text("x = 1")
    (tmp_path / "factory_module.py").write_text(MODULE)
    import factory_module

    yield factory_module
    for name in ("factory_module", "factory_helper"):
        sys.modules.pop(name)


def test_what_a_module_makes_counts_with_its_values_and_the_module_s_files(factory, tmp_path):
    def digests():
        made = [factory.made(1), factory.made(5), factory.Kept(1), factory.Kept(5)]
        made += [functools.partial(factory.plain, noise) for noise in (1, 5)]
        return [load(each).digest for each in made]

    first = digests()
    assert len(set(first)) == 6 and digests() == first
    (tmp_path / "factory_helper.py").write_text("x = 2")
    assert not set(digests()) & set(first)


def of(thing):
    return Contents().of(thing)


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size


def layer(value):
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, value)
    nn.init.constant_(made.bias, 0.0)
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda x: [x, (x, {"a": {x, 7}})],
        lambda x: np.array([x, 2.0]),
        lambda x: torch.tensor(float(x), dtype=torch.bfloat16),
        lambda x: torch.ones(2, x, requires_grad=True),
        lambda x: torch.sparse_coo_tensor([[0]], [float(x)], (2,)),
        layer,
        Slotted,
        lambda x: re.compile(str(x)),
        lambda x: Path(str(x)),
        lambda x: torch.no_grad()(functools.partial(max, x)),
        lambda x: functools.lru_cache(lambda: x),
        lambda x: Slotted(x).__init__,
        lambda x: range(x),
    ],
)
def test_values_count(make):
    assert of(make(3)) == of(make(3)) != of(make(4))


def test_what_holds_itself_and_what_cannot_be_pickled():
    around = [1]
    around.append(around)
    assert of(around) == of(around) != of([1])
    assert of(object()) == of(object()) and of(i for i in "a")


def test_a_callable_that_gives_no_problem():
    with pytest.raises(BadInput, match=r"must return a polyak\.lab\.Problem, got int"):
        load(functools.partial(int, 3))
