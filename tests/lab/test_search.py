"""The settings that a method is tried with."""

from typing import Annotated

import pytest
from torch import nn

from polyak import optim
from polyak.declare import UNIT, Betas, Choice, Lr, Range
from polyak.lab.contenders import resolve
from polyak.lab.search import OFF_SHARE, published_setting, settings
from polyak.optim.create import arguments


class Method(optim.Method):
    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    alpha: Annotated[float, UNIT, Range(0.0, 1.0, log=False)] = 0.25
    betas: Annotated[Betas, Choice(((0.9, 0.99), (0.5, 0.9)))] = (0.9, 0.99)
    eps: float = 1e-8


DEFAULTS = {name: hyper.default for name, hyper in arguments(Method).items()}


def tried(trials, tuning_seed=0):
    return settings(Method.search_space, DEFAULTS, trials, tuning_seed)


def test_trial_0_is_the_published_defaults():
    assert tried(1) == [{"lr": 1e-3, "alpha": 0.25, "betas": (0.9, 0.99)}]


@pytest.mark.parametrize("trials", [0, 1, 2, 7, 8, 9, 19])
def test_a_larger_budget_begins_with_the_smaller_one(trials):
    assert tried(20)[:trials] == tried(trials)


def test_another_tuning_seed_gives_other_trials_but_for_the_defaults():
    first, second = tried(20), tried(20, tuning_seed=1)
    assert first[0] == second[0] and not [s for s in first[1:] if s in second]
    assert second == tried(20, tuning_seed=1)


def test_trials_cover_the_space():
    drawn = tried(17)[1:]
    assert all(1e-4 <= s["lr"] <= 1e-1 and 0 <= s["alpha"] <= 1 for s in drawn)
    # 16 points of a Sobol sequence: one in each sixteenth of every continuous dimension but for the rounding shown
    assert len({int(16 * s["alpha"]) for s in drawn}) == 16
    assert sum(s["lr"] < 10**-2.5 for s in drawn) == 8
    assert sum(s["betas"] == (0.5, 0.9) for s in drawn) == 8


def test_rounding_does_not_leave_the_range():
    drawn = settings({"beta": Range(0.99989, 0.99999, log=False)}, {}, 64)
    assert all(0.99989 <= s["beta"] <= 0.99999 for s in drawn)


def test_defaults_that_the_space_does_not_offer_are_no_trial():
    """The momentum 0 of torch.optim.SGD, at the rate 0.001, costs a trial and wins nothing."""
    sgd = resolve("sgd")
    assert published_setting(sgd.space, sgd.defaults) is None
    drawn = settings(sgd.space, sgd.defaults, 10)
    assert len(drawn) == 10 and all(s["momentum"] in (0.8, 0.9, 0.95) for s in drawn)
    space = {"lr": Range(1e-2, 1.0)}
    assert published_setting(space, {"lr": 1e-3}) is None
    assert published_setting(space, {"lr": 0.1}) == {"lr": 0.1}
    assert published_setting(space, {}) is None
    assert published_setting({"n": Range(0.0, 2.0, log=False)}, {"n": True}) is None


def test_no_decay_is_tried_with_several_rates_where_it_is_the_default():
    muon = resolve("muon")
    drawn = settings(muon.space, muon.defaults, 65)
    assert drawn[0]["weight_decay"] == 0.0
    off = [s for s in drawn[1:] if s["weight_decay"] == 0.0]
    assert len(off) == pytest.approx(64 * OFF_SHARE, abs=1.5) and len({s["lr"] for s in off}) == len(off)
    kept = [s["weight_decay"] for s in drawn if s["weight_decay"]]
    assert 1e-4 <= min(kept) < 2e-4 and 5e-2 < max(kept) <= 1e-1
    assert all(s["weight_decay"] > 0 for s in settings(resolve("adamw").space, resolve("adamw").defaults, 65))


def test_a_method_without_a_search_space():
    assert settings({}, {"lr": 1e-3}, 3) == [{}, {}, {}]


@pytest.mark.parametrize("name", optim.names())
def test_every_method_accepts_what_its_search_space_offers(name):
    method = resolve(name)
    assert "lr" in method.space
    for setting in settings(method.space, method.defaults, 6):
        assert set(setting) == set(method.space)
        method.build(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), **setting)
