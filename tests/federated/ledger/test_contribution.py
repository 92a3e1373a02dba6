"""What updates contributed: the equations, the axioms of Shapley, and what is refused."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyak.federated import ledger
from polyak.federated.ledger import Alignment, DataSize, LeaveOneOut, LossGain, Shapley, shapley_values, weighted_mean


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def updates():
    return torch.randn(4, 6, generator=draws(), dtype=torch.float64)


def loss(moved):
    return float((moved - torch.arange(len(moved), dtype=moved.dtype) / 4).square().sum())


def test_the_equations(updates):
    mean, zero = updates.mean(0), torch.zeros(6, dtype=torch.float64)
    gains = [loss(zero) - loss(d) for d in updates]
    assert LossGain()(updates, loss).tolist() == pytest.approx(gains)
    without = [torch.cat([updates[:i], updates[i + 1 :]]).mean(0) for i in range(4)]
    assert LeaveOneOut()(updates, loss).tolist() == pytest.approx([loss(d) - loss(mean) for d in without])
    assert DataSize()(updates, sizes=[1, 2, 3, 4]).tolist() == [1, 2, 3, 4]


def test_alignment_cuts_lengths_first(updates):
    long = updates.clone()
    long[2] *= 1e6
    lengths = long.norm(dim=1)
    cut = long * (lengths.quantile(0.5) / lengths).clamp(max=1)[:, None]
    others = [torch.cat([cut[:i], cut[i + 1 :]]).mean(0) for i in range(4)]
    expected = [float(d @ other / other.norm()) for d, other in zip(cut, others, strict=True)]
    assert Alignment()(long).tolist() == pytest.approx(expected)
    assert Alignment()(torch.zeros(3, 2)).tolist() == [0, 0, 0]
    assert Alignment()(torch.ones(1, 2)).tolist() == [0]


def by_orders(worth, n):
    found = [0.0] * n
    for order in itertools.permutations(range(n)):
        for k, i in enumerate(order):
            found[i] += worth(frozenset(order[: k + 1])) - worth(frozenset(order[:k]))
    return [value / math.factorial(n) for value in found]


@settings(max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=16, max_size=16))
def test_shapley_values_are_the_mean_over_all_orders_and_sum_to_the_whole(values):
    def worth(members):
        return values[sum(1 << i for i in members)]

    found = shapley_values(worth, 4).tolist()
    assert found == pytest.approx(by_orders(worth, 4), abs=1e-12)
    assert sum(found) == pytest.approx(values[15] - values[0], abs=1e-9)


@settings(max_examples=20)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(0, 2**31))
def test_a_null_player_gets_nothing_in_every_order(values, seed):
    def worth(members):
        return sum(values[i] for i in members if i < 3) ** 3

    for orders in (None, 5):
        assert shapley_values(worth, 4, orders, generator=draws(seed))[3] == 0


def test_shapley_of_updates(updates):
    exact = Shapley(exact=True)(updates, loss)
    whole = loss(torch.zeros(6, dtype=torch.float64)) - loss(updates.mean(0))
    assert float(exact.sum()) == pytest.approx(whole, abs=1e-9)
    twins = torch.cat([updates, updates[:1]])
    values = Shapley(exact=True)(twins, loss)
    assert float(values[0]) == pytest.approx(float(values[4]), abs=1e-12)
    drawn = Shapley(permutations=3000, truncate=0.0)(updates, loss, generator=draws())
    assert float(drawn.sum()) == pytest.approx(whole, abs=1e-9)
    assert drawn.tolist() == pytest.approx(exact.tolist(), abs=0.25)


def test_shapley_draws_by_the_generator_and_asks_for_each_set_once(updates):
    asked = []
    first = Shapley()(updates, lambda d: asked.append(1) or loss(d), generator=draws(3))
    assert len(asked) <= 16
    assert torch.equal(first, Shapley()(updates, loss, generator=draws(3)))


def test_truncation_leaves_the_rest_of_an_order_without_a_share():
    asked = []
    found = shapley_values(lambda s: asked.append(s) or min(len(s), 2), 6, 4, truncate=0.1, generator=draws())
    assert float(found.sum()) == pytest.approx(2)
    assert {len(s) for s in asked} == {0, 1, 2, 6}


def test_the_default_is_by_what_there_is(updates):
    assert torch.equal(ledger.contributions(updates), Alignment()(updates))
    drawn = ledger.contributions(updates, loss, draws(1))
    assert torch.equal(drawn, Shapley()(updates, loss, generator=draws(1)))


def test_measures_by_name_and_as_said():
    for kind in (Alignment, DataSize, LeaveOneOut, LossGain, Shapley):
        assert ledger.get(kind.slug) is kind
        assert "An interpretation" in kind.__doc__ and kind.equation and kind.paper.arxiv == "2107.10243"
    with pytest.raises(ValueError, match="no measure 'shaply'; did you mean 'shapley'"):
        ledger.get("shaply")


def test_the_mean_by_contribution(updates):
    by_hand = (updates[0] + 3 * updates[2]) / 4
    assert torch.allclose(weighted_mean(updates, [1, -5, 3, 0]), by_hand)
    assert torch.allclose(weighted_mean(updates, [0, -1, 0, 0]), updates.mean(0))
    with pytest.raises(ValueError, match="4 finite numbers"):
        weighted_mean(updates, [1, 2, float("nan"), 0])
    with pytest.raises(ValueError, match="4 finite numbers"):
        weighted_mean(updates, [1, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_not_modified(updates, dtype):
    rows = updates.to(dtype)
    before = rows.clone()
    for measure in (Alignment(), Shapley(), LossGain(), LeaveOneOut()):
        assert measure(rows, loss).dtype == torch.float64
    assert torch.equal(rows, before)


def test_what_is_refused(updates):
    broken = updates.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"Shapley: updates must be finite, those of agents \[1\] are not"):
        Shapley()(broken, loss)
    with pytest.raises(
        ValueError, match=r"LossGain: the loss with the updates of agents \[0\] must be finite, got nan"
    ):
        LossGain()(updates, lambda d: float("nan") if d.any() else 1.0)
    with pytest.raises(ValueError, match="LeaveOneOut: loss must be given"):
        LeaveOneOut()(updates)
    with pytest.raises(ValueError, match="DataSize: sizes must be 4 numbers of samples, got 2"):
        DataSize()(updates, sizes=[1, 2])
    with pytest.raises(ValueError, match="permutations must be given for more than 16 players"):
        shapley_values(len, 17)
    with pytest.raises(ValueError, match=r"the worth of players \[0\] must be finite, got inf"):
        shapley_values(lambda s: math.inf, 2)
    with pytest.raises(TypeError, match="real floating"):
        Alignment()(torch.ones(2, 2, dtype=torch.int64))
