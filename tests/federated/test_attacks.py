"""Attacks: by value against the plainest transcription of each, and what all of them promise."""

from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak.federated import attacks
from polyak.federated.aggregators import NNA, Mean, TrimmedMean
from polyak.federated.attacks import ALIE, FOE, Gaussian, LabelFlip, Mimic, MinMax, NotFinite, SignFlip
from polyak.federated.attacks.search import largest

NAMES = attacks.names()


def rows(m: int = 7, d: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (1 + torch.randn(m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept_and_inputs_are_not_touched(name, dtype):
    x = rows(dtype=dtype)
    before = x.clone()
    sent = attacks.get(name)()(x, 3, generator=torch.Generator().manual_seed(1))
    assert sent.shape == (3, 11) and sent.dtype == dtype and torch.equal(x, before)
    again = attacks.get(name)()(list(x), 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sent.nan_to_num(7.0), again.nan_to_num(7.0))


def test_by_value():
    x, f = rows(), 2
    mean, std = x.mean(0), x.std(0)
    for attack, want in [
        (ALIE(-0.7), mean - 0.7 * std),
        (ALIE("hidden"), mean + attacks.hidden_factor(9, 2) * std),
        (FOE(3.0), -2 * mean),
        (SignFlip(), -mean),
        (SignFlip(scaled=True), -3.5 * mean),
        (Mimic(4), x[4]),
        (LabelFlip(), mean),
    ]:
        torch.testing.assert_close(attack(x, f), want.expand(2, -1))
    assert torch.isnan(NotFinite()(x)).all() and (NotFinite("-inf")(x) == -torch.inf).all()
    drawn = Gaussian(3.0, 0.1)(rows(2, 10_000), 2)
    assert abs(drawn.mean() - 3) < 0.01 and abs(drawn.std() - 0.1) < 0.01 and not torch.equal(drawn[0], drawn[1])
    assert Mean()(torch.cat([x, SignFlip(scaled=True)(x, f)])).norm() < 1e-14


def test_factor_that_hides():
    assert attacks.hidden_factor(50, 12) == pytest.approx(NormalDist().inv_cdf((50 - 12 - 14) / 38))
    assert attacks.hidden_factor(1000, 499) == pytest.approx(NormalDist().inv_cdf(0.95))
    for n, f in ((4, 2), (5, -1)):
        with pytest.raises(ValueError, match="num_byzantine must be in"):
            attacks.hidden_factor(n, f)
    with pytest.raises(ValueError, match="minority of honest vectors"):
        attacks.hidden_factor(1, 0)


@given(st.integers(2, 12), st.integers(0, 10_000), st.sampled_from(["sign", "std"]))
def test_min_max_is_the_largest_that_looks_like_one_of_them(m, seed, deviation):
    x = rows(m, 6, seed)
    attack = MinMax(deviation=deviation, start=4.0, tolerance=1e-9)
    sent, mean = attack(x)[0], x.mean(0)
    dev = mean.sign() if deviation == "sign" else x.std(0)
    widest = torch.cdist(x, x).max()
    assert (sent - x).norm(dim=1).max() <= widest * (1 + 1e-12)
    assert (sent - 1e-6 * dev - x).norm(dim=1).max() > widest or (mean - sent).norm() > 7.9 * dev.norm()


@pytest.mark.parametrize("kind", [ALIE, FOE])
@pytest.mark.parametrize("rule", [TrimmedMean(2), NNA(2)])
def test_the_worst_factor_is_about_as_bad_as_any(kind, rule):
    x = rows(9, 5)

    def harm(attack: attacks.Attack) -> float:
        together = torch.cat([x, attack(x, 2)])
        got = torch.stack([rule.seen_by(i)(together) for i in range(9)]).mean(0)
        return float((got - x.mean(0)).square().sum())

    grid = max(harm(kind(z)) for z in torch.linspace(0, 12, 241).tolist())
    assert harm(kind(against=rule, evaluations=24)) > 0.6 * grid
    z = kind(against=rule).factor(x, 2)
    assert torch.equal(kind(against=rule)(x, 2), kind(z)(x, 2))


def test_search():
    asked = []

    def value(x: float) -> float:
        asked.append(x)
        return -((x - 2.2) ** 2)

    assert abs(largest(value, 20, 1.0, 0.8, True, 0.0) - 2.2) < 0.2 and len(asked) == 20 and min(asked) >= 0
    asked.clear()
    assert largest(value, 5, 1.0, 0.8, False, 0.0) == 3.0 and asked == pytest.approx([0, 1, 3, 7, 6.2])
    assert largest(lambda x: -x, 16, 1.0, 0.8, True, 0.0) == 0.0


def test_mimic_learns_the_direction_of_the_largest_spread():
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(20, generator=generator, dtype=torch.float64)
    along /= along.norm()
    attack, memory = Mimic(steps=60), None
    offsets = torch.tensor([-1.0, 0.2, 3.0, 0.5, -0.4], dtype=torch.float64)
    for t in range(70):
        x = offsets[:, None] * along + 0.1 * torch.randn(5, 20, generator=generator, dtype=torch.float64)
        before = None if memory is None else {k: v.clone() for k, v in memory.items()}
        learnt = attack.learn(memory, x)
        if memory is not None:
            assert all(torch.equal(memory[k], before[k]) for k in before)
            assert t < 60 or learnt is memory
        memory = learnt
    assert abs(memory["direction"] @ along) / memory["direction"].norm() > 0.95
    assert int(memory["round"]) == 60
    assert torch.equal(attack(x, 2, memory=memory), x[2].expand(2, -1))
    assert torch.equal(attack(x[:1].expand(3, -1))[0], x[0])


def test_labels_are_turned_round():
    labels = torch.tensor([0, 3, 9])
    assert attacks.flipped(labels, 10).tolist() == [9, 6, 0]
    for bad in (torch.tensor([10]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="labels must be"):
            attacks.flipped(bad, 10)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_that_are_refused(name):
    attack, x = attacks.get(name)(), rows()
    bad = x.clone()
    bad[2, 3] = torch.nan
    for given_, f, error, words in [
        (bad, 2, ValueError, r"honest vectors must be finite, those of rows \[2\] are not"),
        (x, 0, ValueError, "num_byzantine"),
        (x[0], 2, ValueError, r"\(n, d\)"),
        ([], 2, ValueError, "an empty list"),
        ([x[0], x[1, :4]], 2, ValueError, r"vectors\[1\] must have 11 entries"),
        (x.long(), 2, TypeError, "real floating numbers"),
    ]:
        with pytest.raises(error, match=words):
            attack(given_, f)


def test_arguments_that_are_refused():
    for make, words in [
        (lambda: ALIE(rows()), None),
        (lambda: ALIE("mean"), "'hidden'"),
        (lambda: ALIE(float("nan")), "'hidden'"),
        (lambda: FOE(-1.0), "z must be in"),
        (lambda: NotFinite("zero"), "value must be one of"),
        (lambda: Mimic(7)(rows()), "target must be below the number of honest vectors, 7"),
        (lambda: ALIE()(rows(1)), "at least 2, got 1"),
        (lambda: MinMax()(rows(1)), "at least 2, got 1"),
        (lambda: Gaussian(std=-1.0), "std must be in"),
        (lambda: attacks.get("ipm"), "no attack 'ipm'"),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            make()
