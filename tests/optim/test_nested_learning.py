"""M3, Delta Momentum and Deep Momentum: what their equations imply, and what they refuse."""

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyak.memory.matrix import newton_schulz
from polyak.optim import M3, SGD, AdamW, Muon, NLDeep, NLDelta, Optimizer, chain, rules
from tests.optim.moves import moves, random


def weight(seed: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(random(seed, shape)[0])


def test_the_slow_momentum_of_m3_is_written_at_the_end_of_a_chunk_and_read_from_the_next_on() -> None:
    p = weight(0, 5, 4)
    gradients = random(1, *[(5, 4)] * 7)
    optimizer = M3([p], lr=0.1, frequency=3, alpha=0.5, update_rms=None, betas=(0.9, 0.99, 0.8), execution="eager")
    slow, fast, square, chunk = (torch.zeros_like(p) for _ in range(4))
    for t, (g, move) in enumerate(zip(gradients, moves(optimizer, p, gradients), strict=True), 1):
        fast, square, chunk = 0.9 * fast + 0.1 * g, 0.99 * square + 0.01 * g * g, chunk + g
        mixed = newton_schulz(fast.detach()) + 0.5 * newton_schulz(slow.detach())
        want = 0.1 * mixed / ((square / (1 - 0.99**t)).sqrt() + 1e-8)
        torch.testing.assert_close(move, want.detach(), rtol=1e-9, atol=1e-9)
        if t % 3 == 0:
            slow, chunk = 0.8 * slow + 0.2 * chunk / 3, torch.zeros_like(p)
    torch.testing.assert_close(optimizer.state[p]["slow"], slow.detach())
    torch.testing.assert_close(optimizer.state[p]["chunk"], chunk.detach())


@settings(deadline=None, max_examples=15)
@given(rms=st.floats(0.01, 3.0), scale=st.floats(-4, 4))
def test_a_matrix_of_m3_moves_by_update_rms_whatever_the_size_of_the_gradient(rms: float, scale: float) -> None:
    p = weight(0, 6, 3)
    for move in moves(M3([p], lr=0.1, update_rms=rms), p, [g * 10**scale for g in random(1, *[(6, 3)] * 3)]):
        assert float(move.square().mean().sqrt()) == pytest.approx(0.1 * rms, rel=1e-6)


def test_vectors_of_m3_are_adams() -> None:
    p, q = weight(0, 7), weight(0, 7)
    gradients = random(1, *[(7,)] * 5)
    one = moves(M3([p], lr=0.1, betas=(0.8, 0.9, 0.7), weight_decay=0.1), p, gradients)
    other = moves(AdamW([q], lr=0.1, betas=(0.8, 0.9), weight_decay=0.1), q, gradients)
    for u, v in zip(one, other, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-13, atol=1e-15)


def test_the_slow_momentum_keeps_a_direction_that_the_fast_one_has_lost() -> None:
    p = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    first, second = torch.zeros(2, 4, 4, dtype=torch.float64)
    first[0, 0] = second[1, 1] = 1.0
    optimizer = M3([p], frequency=16, execution="eager")
    moves(optimizer, p, [first] * 160 + [second] * 160)

    def cosine(memory: str) -> float:
        held = optimizer.state[p][memory]
        return float((held * first).sum() / held.norm())

    assert cosine("fast") < 1e-3 and cosine("slow") > 0.5


@pytest.mark.parametrize("variant", ["ema", "paper"])
@pytest.mark.parametrize("cut", [2, 3, 4])
def test_m3_resumes_within_a_chunk_bit_for_bit(variant: Any, cut: int) -> None:
    options = {"frequency": 3, "variant": variant}
    p, gradients = weight(0, 5, 4), random(1, *[(5, 4)] * 8)
    optimizer = M3([p], **options)
    moves(optimizer, p, gradients[:cut])
    file = io.BytesIO()
    torch.save((p, optimizer.state_dict()), file)
    file.seek(0)
    q, state = torch.load(file, weights_only=False)
    other = M3([q], **options)
    other.load_state_dict(state)
    moves(optimizer, p, gradients[cut:])
    moves(other, q, gradients[cut:])
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frequency": 0}, r"M3: frequency must be in \[1, inf\), got 0"),
        ({"ns_steps": 0}, r"M3: ns_steps must be in \[1, 99\], got 0"),
        ({"betas": (0.9, 1.0, 0.9)}, r"M3: betas must be in \[0, 1\) with variant='ema'"),
        ({"alpha": -1.0}, "M3: alpha must be in"),
        ({"variant": "delta"}, r"M3: variant must be one of \['ema', 'paper'\]"),
    ],
)
def test_m3_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        M3([weight(0, 2, 2)], **options)


def test_sums_of_the_paper_may_have_any_beta_and_zero_gradients_move_nothing() -> None:
    p = weight(0, 3, 3)
    optimizer = M3([p], betas=(1.0, 2.0, 1.5), variant="paper")
    assert all(not move.any() for move in moves(optimizer, p, [torch.zeros_like(p)] * 2))


def test_delta_zero_is_the_heavy_ball() -> None:
    for shape in ((5, 3), (7,), (2, 3, 2, 2)):
        p, q = weight(0, *shape), weight(0, *shape)
        gradients = random(1, *[shape] * 6)
        one, other = (
            moves(NLDelta([p], lr=0.1, delta=0.0), p, gradients),
            moves(SGD([q], lr=0.1, momentum=0.9), q, gradients),
        )
        for u, v in zip(one, other, strict=True):
            torch.testing.assert_close(u, v, rtol=1e-12, atol=1e-14)


def test_orthogonalized_and_without_delta_it_is_muon() -> None:
    """Muon's average is 0.1 of the heavy ball, and Newton-Schulz knows no scale but for its eps."""
    p, q = weight(0, 5, 3), weight(0, 5, 3)
    gradients = random(1, *[(5, 3)] * 6)
    one = moves(NLDelta([p], lr=0.1, delta=0.0, orthogonalize=True), p, gradients)
    muon = Muon([q], lr=0.1, momentum=0.9, nesterov=False, adjust_lr=None)
    for u, v in zip(one, moves(muon, q, gradients), strict=True):
        torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=8)
@given(momentum=st.floats(0.0, 0.8), delta=st.floats(0.0, 0.8))
def test_a_constant_gradient_ends_at_the_steady_state(momentum: float, delta: float) -> None:
    p, (g,) = weight(0, 6), random(1, (6,))
    step = moves(NLDelta([p], lr=0.1, momentum=momentum, delta=delta, execution="eager"), p, [g] * 100)[-1]
    torch.testing.assert_close(step, 0.1 * g / (1 - momentum + delta), rtol=1e-6, atol=1e-9)


def test_what_is_erased_is_what_the_memory_holds_along_the_gradient() -> None:
    """With momentum 1, delta 1 and one row nothing is left along the gradient but what is written."""
    p, (first, second) = weight(0, 6), random(1, (6,), (6,))
    optimizer = NLDelta([p], lr=0.5, momentum=0.99, delta=0.99)
    moves(optimizer, p, [first, second])
    held = optimizer.state[p]["momentum_buffer"] - 0.5 * second
    assert float((held * second).abs().sum()) > 1e-3
    assert abs(float((held * second).sum())) < 1e-6


@pytest.mark.parametrize("feature", ["sign", "cube", "signed_sqrt"])
def test_features_are_what_is_written(feature: Any) -> None:
    p, (g,) = weight(0, 4, 3), random(1, (4, 3))
    maps = {"sign": g.sign(), "cube": g**3 / g.square().mean(), "signed_sqrt": g.sign() * g.abs().sqrt()}
    (move,) = moves(NLDelta([p], lr=0.1, feature=feature), p, [g])
    torch.testing.assert_close(move, 0.1 * maps[feature])
    assert not moves(NLDelta([p], lr=0.1, momentum=0.0, feature=feature), p, [torch.zeros_like(g)])[0].any()


def test_any_other_rule_may_come_before_the_memory() -> None:
    p = weight(0, 4, 3)
    own = chain(rules.adam(), rules.delta_memory(), rules.descend())
    moves(Optimizer([p], own, lr=0.1), p, random(1, *[(4, 3)] * 3))
    assert p.isfinite().all()


def test_delta_out_of_its_stable_range() -> None:
    allowed = r"\[0, 1 \+ momentum\] = \[0, 1.9\] with normalized keys"
    with pytest.raises(ValueError, match=f"NLDelta: delta must be in {allowed}, got 2.0"):
        NLDelta([weight(0, 2, 2)], delta=2.0)
    with pytest.warns(UserWarning, match="normalize_keys=False diverges where"):
        NLDelta([weight(0, 2, 2)], delta=2.0, normalize_keys=False)


@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("shape", [(5, 3), (7,), (2, 3, 2, 2)])
def test_the_memory_takes_a_gradient_step_on_its_objective(objective: Any, shape: tuple[int, ...]) -> None:
    p, gradients = weight(0, *shape), random(1, *[shape] * 3)
    optimizer = NLDeep([p], lr=0.1, inner_lr=0.3, forget=0.9, hidden=4, objective=objective)
    moves(optimizer, p, gradients[:2])
    inner, outer = (optimizer.state[p][k].clone().requires_grad_() for k in ("inner", "outer"))
    x = gradients[2].reshape(shape[0], -1)
    x = x / (x.square().mean().sqrt() + 1e-8)
    answer = torch.tanh(x @ inner.T) @ outer.T
    loss = ((answer + x).square() / 2 if objective == "l2" else answer * x).sum(1).mean()
    loss.backward()
    (move,) = moves(optimizer, p, gradients[2:])
    a, b = (0.9 * w.detach() - 0.3 * w.grad for w in (inner, outer))
    torch.testing.assert_close(optimizer.state[p]["inner"], a, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(move, -0.1 * (torch.tanh(x @ a.T) @ b.T).reshape(shape), rtol=1e-10, atol=1e-12)


def test_deep_momentum_drives_a_quadratic_down() -> None:
    p = weight(0, 8, 4)
    optimizer = NLDeep([p], lr=0.02, seed=3, execution="eager")
    start = float(p.detach().square().sum())
    for _ in range(300):
        p.grad = p.detach().clone()
        optimizer.step()
    assert float(p.detach().square().sum()) < 0.02 * start


def test_a_gradient_that_is_not_finite_is_not_learned_and_counted() -> None:
    p, (g,) = weight(0, 4, 3), random(1, (4, 3))
    optimizer = NLDeep([p])
    moves(optimizer, p, [g])
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    moves(optimizer, p, [torch.full_like(g, math.nan)])
    assert all(torch.equal(before[k], optimizer.state[p][k]) for k in ("inner", "outer"))
    assert float(optimizer.state[p]["skipped"]) == 1


def test_deep_momentum_is_the_same_in_every_mode_and_resumes_bit_for_bit() -> None:
    gradients = random(1, *[(4, 3)] * 6)
    ends = []
    for execution in ("eager", "batched", "compiled"):
        p = weight(0, 4, 3)
        moves(NLDeep([p], execution=execution), p, gradients)
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    p = weight(0, 4, 3)
    optimizer = NLDeep([p])
    moves(optimizer, p, gradients[:3])
    other = NLDeep([p], seed=9)
    other.load_state_dict(optimizer.state_dict())
    moves(other, p, gradients[3:])
    assert torch.equal(p.detach(), ends[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": 0}, r"NLDeep: hidden must be in \[1, 4096\], got 0"),
        ({"forget": 0.0}, r"NLDeep: forget must be in \(0, 1\], got 0.0"),
        ({"objective": "l1"}, r"NLDeep: objective must be one of \['l2', 'dot'\]"),
    ],
)
def test_deep_momentum_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NLDeep([weight(0, 2, 2)], **options)
