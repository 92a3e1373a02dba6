"""Spikes: entries that are cut, norms that are held, memories that are forgotten, and masks that are drawn."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim import SPAM, AdamW, Optimizer, StableSPAM, chain, rules
from tests.optim.moves import moves, random

SEEDS = st.integers(0, 2**31)
SHAPES = st.sampled_from([(7,), (3, 5), (1,), (4, 2, 3, 3)])
MODES = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]


def path(make: Any, start: Tensor, gradients: list[Tensor]) -> Tensor:
    """The weights after each step."""
    p = nn.Parameter(start.clone())
    optimizer = make([p])
    out = []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        out.append(p.detach().clone())
        assert torch.equal(p.grad, g), "p.grad is not changed"
    return torch.stack(out)


@settings(max_examples=15)
@given(SEEDS, SHAPES)
def test_spam_that_never_cuts_and_never_resets_is_adamw(seed: int, shape: tuple[int, ...]) -> None:
    """But for where eps and the decay stand: none of both here."""
    start, *gradients = random(seed, *[shape] * 6)
    spam = path(lambda ps: SPAM(ps, lr=1e-2, eps=0.0, threshold=0, DeltaT=1000), start, gradients)
    adam = path(lambda ps: AdamW(ps, lr=1e-2, eps=0.0, weight_decay=0.0), start, gradients)
    torch.testing.assert_close(spam, adam, rtol=1e-11, atol=1e-13)


@settings(max_examples=15)
@given(SEEDS, SHAPES, st.floats(1e3, 1e30))
def test_how_far_a_spike_reaches_does_not_matter(seed: int, shape: tuple[int, ...], factor: float) -> None:
    start, *gradients = random(seed, *[shape] * 8)
    options: dict[str, Any] = {"threshold": 5.0, "grad_accu_steps": 2, "DeltaT": 100}
    spiked, more = ([g * (f if t == 5 else 1) for t, g in enumerate(gradients)] for f in (factor, factor * 1e3))
    one = path(lambda ps: SPAM(ps, **options), start, spiked)
    other = path(lambda ps: SPAM(ps, **options), start, more)
    assert torch.equal(one, other)


def test_an_infinite_gradient_is_cut_to_a_finite_one_and_nan_is_not() -> None:
    start, *gradients = random(0, *[(3, 4)] * 6)
    options: dict[str, Any] = {"threshold": 5.0, "grad_accu_steps": 2, "DeltaT": 100}
    gradients[4][0, 0] = -math.inf
    assert torch.isfinite(path(lambda ps: SPAM(ps, **options), start, gradients)).all()
    gradients[4][0, 0] = math.nan
    with pytest.raises(RuntimeError, match="check_finite: non-finite gradient"):
        path(lambda ps: SPAM(ps, **options, check_finite=True), start, gradients)


def test_a_reset_forgets_and_the_steps_grow_again() -> None:
    period, warmup = 6, 3
    start, *gradients = random(1, *[(3, 4)] * 15)
    p = nn.Parameter(start)
    optimizer = SPAM([p], lr=1.0, DeltaT=period, warmup_steps=warmup, threshold=0, eps=0.0, bias_correction=False)
    sizes = []
    for t, (move, g) in enumerate(zip(moves(optimizer, p, gradients), gradients, strict=True), start=1):
        if t in (1, period, 2 * period):  # a first step: m = (1 - b1) g, v = (1 - b2) g^2
            sizes.append(float((move / (0.1 / math.sqrt(0.001) * g.sign())).mean()))
    warmth = [0.01 + 0.99 * (1 - math.cos(math.pi * s / (warmup + 1))) / 2 for s in range(warmup)]
    assert sizes == pytest.approx([1.0, warmth[0], warmth[0]])
    assert warmth[0] == pytest.approx(0.01)


@pytest.mark.parametrize("execution", MODES)
def test_any_rule_may_forget(execution: Any) -> None:
    """Lion whose memory is cleared is a new Lion from that step on."""
    starts = random(2, (200, 190), (30, 4), (5,))
    params = [nn.Parameter(w.clone()) for w in starts]
    whole = chain(rules.momentum_reset(rules.lion()), rules.descend())
    optimizer = Optimizer(params, whole, lr=0.1, DeltaT=4, execution=execution)
    plain = [nn.Parameter(w.clone()) for w in starts]
    for t in range(1, 10):
        if t in (1, 4, 8):
            fresh = Optimizer(plain, chain(rules.lion(), rules.descend()), lr=0.1, execution=execution)
        for p, q, g in zip(params, plain, random(10 + t, *[w.shape for w in starts]), strict=True):
            p.grad = q.grad = g
        optimizer.step()
        fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(params, plain, strict=True))


@pytest.mark.parametrize(("at", "kept"), [("now", False), ("next", True)])
def test_what_a_reset_step_steps_with(at: Any, kept: bool) -> None:
    """Averages of a constant gradient: forgotten before the step they are those of a first one, else full ones."""
    g = torch.ones(3, dtype=torch.float64)
    whole = chain(rules.momentum_reset(rules.momentum_ema(nesterov=False), at), rules.descend())
    p = nn.Parameter(torch.zeros_like(g))
    optimizer = Optimizer([p], whole, lr=1.0, momentum=0.5, DeltaT=3)
    sizes = [float(m[0]) for m in moves(optimizer, p, [g] * 4)]
    assert sizes == ([0.5, 0.75, 0.875, 0.5] if kept else [0.5, 0.75, 0.5, 0.75])


def test_a_reset_that_has_nothing_to_forget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum_reset: lion keeps \['exp_avg'\], and spared are \['avg'\]"):
        rules.momentum_reset(rules.lion(), "now", False, ("avg",))
    with pytest.raises(ValueError, match="nothing to reset"):
        rules.momentum_reset(rules.descend())
    with pytest.raises(ValueError, match="at must be one of"):
        rules.momentum_reset(rules.lion(), "soon")


@pytest.mark.parametrize("execution", MODES)
def test_clipping_goes_before_any_memory(execution: Any) -> None:
    """A spike of a thousand times the usual does to SGD what one of a million does."""
    starts = random(3, (200, 190), (30, 4), (5,), (1,))

    def run(factor: float) -> list[nn.Parameter]:
        params = [nn.Parameter(w.clone()) for w in starts]
        whole = chain(rules.clip_spikes(), rules.heavy_ball(), rules.descend())
        optimizer = Optimizer(params, whole, lr=0.1, threshold=9.0, grad_accu_steps=3, execution=execution)
        for t in range(8):
            for p, g in zip(params, random(20 + t, *[w.shape for w in starts]), strict=True):
                p.grad = g.sign() * factor if t == 6 else g
            optimizer.step()
        return params

    few, many = run(1e3), run(1e6)
    assert all(torch.equal(p, q) for p, q in zip(few, many, strict=True))
    plain = run(1.0)
    assert all(float((p - q).detach().abs().max()) < 1.0 for p, q in zip(few, plain, strict=True))


@pytest.mark.parametrize("execution", MODES)
def test_ada_clip_brings_the_largest_entry_to_its_average(execution: Any) -> None:
    """Of any tensor, large ones in slices too."""
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((200, 190), (6, 4), (5,), (1,))]
    optimizer = Optimizer(params, chain(rules.ada_clip(), rules.descend()), lr=1.0, gamma3=0.5, execution=execution)
    tops: list[list[float]] = [[] for _ in params]
    for t in range(4):
        for p, g in zip(params, random(30 + t, *[p.shape for p in params]), strict=True):
            p.data.zero_()
            p.grad = g * (10 if t == 3 else 1)
        optimizer.step()
        for p, own in zip(params, tops, strict=True):
            assert p.grad is not None
            own.append(float(p.grad.abs().max()))
            average = sum(m * 0.5 ** (t - i + 1) for i, m in enumerate(own)) / (1 - 0.5 ** (t + 1))
            torch.testing.assert_close(float(p.detach().abs().max()), min(own[-1], average), rtol=1e-12, atol=0)


@settings(max_examples=15)
@given(SEEDS, st.floats(-3, 3))
def test_stable_spam_forgets_the_scale_of_the_gradient(seed: int, power: float) -> None:
    start, *gradients = random(seed, *[(6, 4)] * 8)
    options: dict[str, Any] = {"lr": 0.1, "eps": 1e-30, "DeltaT": 5}
    one = path(lambda ps: StableSPAM(ps, **options), start, gradients)
    other = path(lambda ps: StableSPAM(ps, **options), start, [g * 10**power for g in gradients])
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_stable_spam_of_gradients_that_are_zero_stands() -> None:
    start = random(0, (6, 4))[0]
    assert torch.equal(path(StableSPAM, start, [torch.zeros_like(start)] * 3)[-1], start)


def test_the_cosine_of_stable_spam_stays_at_its_end() -> None:
    start, *gradients = random(4, *[(3, 4)] * 12)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    cooling, cooled = StableSPAM([p], total_T=5, eta_min=0.5), StableSPAM([q], total_T=5, eta_min=0.5)
    moves(cooling, p, gradients[:5])
    cooled.load_state_dict(copy.deepcopy(cooling.state_dict()))
    q.data.copy_(p.data)
    share = 0.5 + 0.25 * (1 + math.cos(math.pi * 5 / 6))
    cooled.param_groups[0].update(total_T=None, betas=(0.9 * share, 0.999), gamma1=0.7 * share)
    for a, b in zip(moves(cooling, p, gradients[5:]), moves(cooled, q, gradients[5:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_reset_at_now_is_a_new_adam() -> None:
    """Of a gradient that stays the same but in sign, each step after a reset is that of a first one."""
    g = torch.ones(4, dtype=torch.float64)
    p = nn.Parameter(torch.zeros_like(g))
    optimizer = StableSPAM([p], lr=1.0, DeltaT=3, reset_at="now", eps=1e-30)
    sizes = [float(m[0]) for m in moves(optimizer, p, [g, g, -g])]
    assert sizes == pytest.approx([1.0, 1.0, -1.0], rel=1e-9)


def masked(optimizer: Optimizer, params: list[nn.Parameter], steps: int, first: int = 0) -> list[Tensor]:
    """Which entries moved in each step, of each tensor."""
    moved = []
    for t in range(first, first + steps):
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, random(50 + t, *[p.shape for p in params]), strict=True):
            p.grad = g
        optimizer.step()
        moved += [p.detach() != b for p, b in zip(params, before, strict=True)]
    return moved


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(w) for w in random(5, (200, 190), (40, 40), (40, 40), (5,), (4, 3, 3, 3))]


OPTIONS: dict[str, Any] = {"density": 0.3, "DeltaT": 3, "warmup_steps": 1, "grad_accu_steps": 2, "threshold": 50.0}


@pytest.mark.parametrize("execution", MODES)
def test_masks_hold_between_resets_and_have_their_density(execution: Any) -> None:
    params = fresh()
    moved = masked(SPAM(params, **OPTIONS, execution=execution), params, 7)
    big, one, two, vector, kernel = (moved[i :: len(params)] for i in range(len(params)))
    assert all(m.all() for m in vector + kernel)
    for masks, spread in ((big, 0.01), (one, 0.05), (two, 0.05)):
        assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3]) and torch.equal(masks[2], masks[4])
        assert not torch.equal(masks[1], masks[2]) and not torch.equal(masks[4], masks[5])
        assert all(abs(float(m.double().mean()) - 0.3) < spread for m in masks)
    assert not torch.equal(one[0], two[0])


def test_masks_are_those_of_the_seed_in_every_mode_and_order_of_dimensions() -> None:
    def run(seed: int, execution: Any, turned: bool = False) -> list[Tensor]:
        params = fresh()
        if turned:
            params[0] = nn.Parameter(params[0].detach().t().contiguous().t())
        masked(SPAM(params, **OPTIONS, seed=seed, execution=execution), params, 5)
        return [p.detach() for p in params]

    first = run(0, "eager")
    for other in (run(0, "batched"), run(0, "eager", turned=True)):
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert not torch.equal(first[0], run(1, "eager")[0])


def test_a_density_resumes_bit_for_bit() -> None:
    params = fresh()
    optimizer = SPAM(params, **OPTIONS, seed=3)
    masked(optimizer, params, 4)
    others = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = SPAM(others, **OPTIONS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masked(optimizer, params, 5, first=4)
    masked(resumed, others, 5, first=4)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


def test_spam_of_a_density_is_spam_of_the_gradients_that_the_mask_lets_through() -> None:
    params, plain = fresh()[:3], fresh()[:3]
    thin, dense = SPAM(params, **OPTIONS), SPAM(plain, **OPTIONS | {"density": 1.0})
    for t in range(7):
        gradients = random(50 + t, *[p.shape for p in params])
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        thin.step()
        masks = [p.detach() != b for p, b in zip(params, before, strict=True)]
        for q, g, m in zip(plain, gradients, masks, strict=True):
            q.grad = g * m
        dense.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -1.0}, r"SPAM: threshold must be in \[0, inf\), got -1.0"),
        ({"DeltaT": 0}, r"SPAM: DeltaT must be in \[1, inf\), got 0"),
        ({"warmup_steps": -1}, "SPAM: warmup_steps .*got -1"),
        ({"density": 0.0}, r"SPAM: density must be in \(0, 1\], got 0.0"),
        ({"density": 1.5}, "density .*got 1.5"),
        ({"seed": -1}, "seed .*got -1"),
    ],
)
def test_spam_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SPAM([nn.Parameter(torch.zeros(2))], **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gamma1": -0.5}, r"StableSPAM: gamma1 must be in \[0, 1\), or -1 for betas\[0\], got -0.5"),
        ({"gamma2": 1.0}, "gamma2 .*got 1.0"),
        ({"gamma3": 1.0}, "gamma3 .*got 1.0"),
        ({"total_T": 0}, "total_T .*got 0"),
        ({"eta_min": 1.5}, "eta_min .*got 1.5"),
        ({"DeltaT": -1}, "DeltaT .*got -1"),
        ({"reset_at": "then"}, "reset_at must be one of"),
    ],
)
def test_stable_spam_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        StableSPAM([nn.Parameter(torch.zeros(2))], **options)


def test_spam_that_can_never_cut_says_so() -> None:
    with pytest.warns(UserWarning, match="SPAM: grad_accu_steps >= DeltaT"):
        SPAM([nn.Parameter(torch.zeros(2))], grad_accu_steps=10, DeltaT=10)
