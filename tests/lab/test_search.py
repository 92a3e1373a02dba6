"""The settings that a method is tried with."""

from typing import Annotated

import pytest
from torch import nn

from polyak import optim
from polyak.declare import UNIT, Betas, Choice, Lr, Range
from polyak.lab.search import settings


class Method(optim.Method):
    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    alpha: Annotated[float, UNIT, Range(0.0, 1.0, log=False)] = 0.25
    betas: Annotated[Betas, Choice(((0.9, 0.99), (0.5, 0.9)))] = (0.9, 0.99)
    eps: float = 1e-8


def test_trial_0_is_the_published_defaults():
    assert settings(Method, 1) == [{"lr": 1e-3, "alpha": 0.25, "betas": (0.9, 0.99)}]


def test_a_larger_budget_begins_with_the_smaller_one():
    assert settings(Method, 20)[:7] == settings(Method, 7)


def test_trials_cover_the_space():
    drawn = settings(Method, 17)[1:]
    assert all(1e-4 <= s["lr"] <= 1e-1 and 0 <= s["alpha"] <= 1 for s in drawn)
    # 16 points of a Sobol sequence: one in each sixteenth of every continuous dimension but for the rounding shown
    assert len({int(16 * s["alpha"]) for s in drawn}) == 16
    assert sum(s["lr"] < 10**-2.5 for s in drawn) == 8
    assert sum(s["betas"] == (0.5, 0.9) for s in drawn) == 8


def test_a_method_without_a_search_space():
    class Plain(optim.Method):
        lr: Lr = 1e-3

    assert settings(Plain, 3) == [{}, {}, {}]


@pytest.mark.parametrize("name", optim.names())
def test_every_method_accepts_what_its_search_space_offers(name):
    method = optim.get(name)
    assert "lr" in method.search_space
    for setting in settings(method, 6):
        assert set(setting) == set(method.search_space)
        optim.create(name, nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), **setting)
