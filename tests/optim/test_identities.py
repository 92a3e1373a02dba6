"""Ano, Lion-K, AlphaAdam, LARS, LAMB and SGD-SaI: what their equations imply, and what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import (
    LAMB,
    LARS,
    SCALE,
    SGD,
    AdamW,
    AlphaAdam,
    Ano,
    Anoall,
    Anolog,
    Lion,
    LionK,
    Optimizer,
    SGDSaI,
    chain,
    rules,
)  # fmt: skip
from tests.optim.moves import moves, random


def test_ano_has_the_sign_of_its_memory_and_the_size_of_the_gradient() -> None:
    start, *gradients = random(0, *[(6, 5)] * 8)
    p = nn.Parameter(start)
    optimizer = Ano([p], lr=0.1, betas=(0.9, 0.5), eps=1e-3)
    for t, g in enumerate(gradients, 1):
        (move,) = moves(optimizer, p, [g])
        m, v = optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]
        assert bool((v >= 0).all())
        torch.testing.assert_close(move, 0.1 * m.sign() * g.abs() / (v / (1 - 0.5**t) + 1e-3).sqrt())


def test_yogis_own_second_moment_does_not_decay() -> None:
    start, *gradients = random(7, *[(6, 5)] * 8)
    for make in (Ano, Anoall):
        p = nn.Parameter(start.clone())
        b2 = {"betas": (0.9, 0.7)} if make is Ano else {"beta2": 0.7}
        optimizer = make([p], second_moment="yogi", **b2)
        v = torch.zeros_like(p)
        for g in gradients:
            moves(optimizer, p, [g])
            v = v + (1 - 0.7) * (g * g - v).sign() * g * g
            torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], v)


def test_lamb_counts_no_more_of_a_weight_than_its_clamp() -> None:
    """The step is as long as the weight, times lr, or as the clamp."""
    start, *gradients = random(8, *[(6, 5)] * 4)
    for clamp in (0.5, 100.0):
        p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        clamped, plain = LAMB([p], lr=0.01, clamp_value=clamp), LAMB([q], lr=0.01)
        for g in gradients:
            length = p.detach().norm().clamp(max=clamp)
            (move,), (other,) = moves(clamped, p, [g]), moves(plain, q, [g])
            torch.testing.assert_close(move.norm(), 0.01 * length)
            assert torch.equal(move, other) == (clamp == 100.0)


def test_anoall_remembers_the_mean_and_anolog_has_two_schedules() -> None:
    gradients = random(1, *[(7,)] * 5)
    p, q, r = (nn.Parameter(torch.zeros(7, dtype=torch.float64)) for _ in range(3))
    every, code, paper = Anoall([p]), Anolog([q]), Anolog([r], retention="log_shifted")
    moves(every, p, gradients)
    torch.testing.assert_close(every.state[p]["exp_avg"], torch.stack(gradients).mean(0))
    moves(code, q, gradients[:1])
    moves(paper, r, gradients[:1])
    log = torch.tensor([2.0, 3.0], dtype=torch.float64).log()
    torch.testing.assert_close(code.state[q]["exp_avg"], gradients[0] / log[0])
    torch.testing.assert_close(paper.state[r]["exp_avg"], gradients[0] / log[1])


def test_lionk_with_l1_is_lion() -> None:
    start, *gradients = random(2, *[(4, 3)] * 5)
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = moves(LionK([a], lr=0.1, weight_decay=0.3), a, gradients)
    other = moves(Lion([b], lr=0.1, weight_decay=0.3), b, gradients)
    assert all(torch.equal(u, v) for u, v in zip(one, other, strict=True))


def largest(x: Tensor) -> Tensor:
    return x.abs().amax()


BOUNDS: list[tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ({"kappa": "l1"}, largest),
    ({"kappa": "dead", "e": 0.3}, largest),
    ({"kappa": "huber", "e": 0.3}, largest),
    ({"kappa": "pseudo", "e": 0.3}, largest),
    ({"kappa": "logcosh", "e": 0.3}, largest),
    ({"kappa": "l2"}, torch.linalg.vector_norm),
    ({"kappa": "lp", "p": 1.5}, lambda x: torch.linalg.vector_norm(x, 3)),
    ({"kappa": "group"}, lambda x: x.flatten(1).norm(dim=1).amax()),
    ({"kappa": "topk", "k": 0.25}, lambda x: torch.maximum(largest(x), x.abs().sum() / (0.25 * x.numel()))),
    ({"kappa": "nuclear"}, lambda x: torch.linalg.matrix_norm(x.flatten(1), 2)),
]


@pytest.mark.parametrize(("options", "norm"), BOUNDS, ids=[h["kappa"] for h, _ in BOUNDS])
@pytest.mark.parametrize("shape", [(8, 6), (4, 2, 3, 2)])
def test_lionk_comes_nearer_to_its_bound_at_the_rate_of_the_decay(options, norm, shape) -> None:
    """And is never farther from it: the norm of ``w * p`` is at most 1 in the end."""
    start, *gradients = random(3, *[shape] * 40)
    p = nn.Parameter(5 * start)
    optimizer = LionK([p], lr=0.1, weight_decay=2.0, **options)
    sizes = [norm(2.0 * p.detach())]
    for g in gradients:
        moves(optimizer, p, [g])
        sizes.append(norm(2.0 * p.detach()))
        assert sizes[-1] - 1 <= (1 - 0.1 * 2.0) * (sizes[-2] - 1) + 1e-12
    assert sizes[0] > 2 and sizes[-1] < 1.01


def test_lionk_for_matrices_takes_another_kappa_for_vectors() -> None:
    start, *gradients = random(4, *[(9,)] * 4)
    for kappa, instead in (("group", "l2"), ("nuclear", "l1")):
        a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        one, other = LionK([a], lr=0.1, kappa=kappa), LionK([b], lr=0.1, kappa=instead)
        for u, v in zip(moves(one, a, gradients), moves(other, b, gradients), strict=True):
            assert torch.equal(u, v)


def test_lionk_of_zeros_and_of_equals() -> None:
    for options, _ in BOUNDS:
        p = nn.Parameter(torch.ones(3, 4))
        (move,) = moves(LionK([p], **options), p, [torch.zeros(3, 4)])
        assert not move.any(), options
    p = nn.Parameter(torch.zeros(6))
    (move,) = moves(LionK([p], lr=1.0, kappa="topk", k=0.4), p, [torch.tensor([0.0, 2.0, -2.0, 2.0, -2.0, 1.0])])
    assert move.tolist() == [0.0, 1.0, -1.0, 1.0, 0.0, 0.0]


def test_alphaadam_keeps_the_length_of_adams_step() -> None:
    start, *gradients = random(5, *[(6, 7)] * 6)
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    masked = moves(AlphaAdam([a], weight_decay=0.0, alpha_max=1e6), a, gradients)
    plain = moves(AdamW([b], weight_decay=0.0), b, gradients)
    torch.testing.assert_close(masked[0], plain[0])
    for u, v in zip(masked, plain, strict=True):
        torch.testing.assert_close(u.norm(), v.norm())
    assert not torch.allclose(masked[-1], plain[-1])


def test_alphaadam_is_adamw_where_all_agree_and_only_decays_where_none_does() -> None:
    start, g = random(6, (5, 4), (5, 4))
    a, b, c = (nn.Parameter(start.clone()) for _ in range(3))
    for u, v in zip(moves(AlphaAdam([a]), a, [g] * 4), moves(AdamW([b]), b, [g] * 4), strict=True):
        torch.testing.assert_close(u, v)
    optimizer = AlphaAdam([c], lr=0.1, weight_decay=0.5)
    moves(optimizer, c, [g])
    before = c.detach().clone()
    (move,) = moves(optimizer, c, [-g / 100])
    torch.testing.assert_close(move, 0.05 * before)


def test_alphaadam_bounds_its_factor() -> None:
    g = torch.ones(100, dtype=torch.float64)
    other = -g / 10
    other[0] = 1.0
    p, q = nn.Parameter(torch.zeros_like(g)), nn.Parameter(torch.zeros_like(g))
    masked = moves(AlphaAdam([p], weight_decay=0.0, alpha_max=2.0), p, [g, other])[1]
    plain = moves(AdamW([q], weight_decay=0.0), q, [g, other])[1]
    torch.testing.assert_close(masked[0], 2.0 * plain[0])
    assert not masked[1:].any()


@pytest.mark.parametrize("denominator", ["sum", "joint"])
def test_lars_and_lamb_step_in_proportion_to_the_weight(denominator) -> None:
    start, g = random(7, (4, 3, 2), (4, 3, 2))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (move,) = moves(LARS([p], lr=0.5, trust_coeff=0.02, denominator=denominator), p, [g])
    torch.testing.assert_close(move, 0.5 * 0.02 * start.norm() / g.norm() * g)
    (move,) = moves(LAMB([q], lr=0.03), q, [g])
    torch.testing.assert_close(move.norm(), 0.03 * start.norm())


def test_lars_and_lamb_leave_vectors_to_their_bases() -> None:
    start, *gradients = random(8, *[(6,)] * 4)
    pairs = [
        (LARS, {"lr": 0.1, "weight_decay": 0.3}, SGD, {"lr": 0.1, "momentum": 0.9}),
        (LAMB, {"lr": 0.1, "eps": 1e-8, "weight_decay": 0.3}, AdamW, {"lr": 0.1, "weight_decay": 0.0}),
    ]
    for method, own, base, options in pairs:
        a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        for u, v in zip(
            moves(method([a], **own), a, gradients), moves(base([b], **options), b, gradients), strict=True
        ):
            torch.testing.assert_close(u, v)


def test_lars_without_weight_or_gradient_is_momentum() -> None:
    g = random(9, (3, 3))[0]
    p, q = nn.Parameter(torch.zeros_like(g)), nn.Parameter(torch.ones_like(g))
    assert torch.equal(moves(LARS([p], lr=0.5), p, [g])[0], 0.5 * g)
    assert not moves(LARS([q], lr=0.5), q, [torch.zeros_like(g)])[0].any()


def test_the_lr_in_the_buffer_of_lars_is_that_of_its_day() -> None:
    start, *gradients = random(10, *[(3, 4)] * 3)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    inside, outside = LARS([p], lr=1.0, momentum=0.5), LARS([q], lr=1.0, momentum=0.5, lr_in_buffer=False)
    first = moves(inside, p, gradients[:1])[0]
    torch.testing.assert_close(first, moves(outside, q, gradients[:1])[0])
    for optimizer in (inside, outside):
        optimizer.param_groups[0]["lr"] = 0.0
    torch.testing.assert_close(moves(inside, p, gradients[1:2])[0], 0.5 * first)
    assert not moves(outside, q, gradients[1:2])[0].any()


def test_the_clip_of_lars_is_larcs() -> None:
    start, g = random(11, (3, 4), (3, 4))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    (large,) = moves(LARS([p], lr=0.1, trust_coeff=100.0, trust_clip=True), p, [g])
    torch.testing.assert_close(large, 0.1 * g)
    (small,) = moves(LARS([q], lr=0.1, trust_coeff=1e-3, trust_clip=True), q, [g])
    torch.testing.assert_close(small, 1e-3 * start.norm() / g.norm() * g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sgd_sai_scales_by_the_first_gradient_that_says_something(dtype) -> None:
    start, *gradients = (x.to(dtype) for x in random(12, *[(5, 6)] * 3))
    p = nn.Parameter(start)
    optimizer = SGDSaI([p], lr=0.1, weight_decay=0.0)
    assert not moves(optimizer, p, [torch.zeros_like(start)])[0].any()
    moves(optimizer, p, gradients)
    snr = gradients[0].norm() / (gradients[0].std() + 1e-8)
    torch.testing.assert_close(optimizer.state[p]["snr"], snr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("numel", [1, 1000])
def test_sgd_sai_of_equal_entries(dtype, numel) -> None:
    p, q = (nn.Parameter(torch.zeros(numel, dtype=dtype)) for _ in range(2))
    g = torch.full_like(p, 0.3)
    (move,) = moves(SGDSaI([p], lr=0.1), p, [g])
    torch.testing.assert_close(move, 0.1 * numel**0.5 * g)
    assert moves(SGDSaI([q], lr=0.1, strict=True), q, [g])[0].abs().amax() > 1e3


def test_scale_brings_lines_to_one_size_and_remembers_heads_alone() -> None:
    start, matrix, embedding, first, second = random(13, *[(4, 6)] * 5)
    groups = [{"params": [nn.Parameter(start.clone())], "role": role} for role in ("matrix", "embedding", "head")]
    optimizer = SCALE(groups, lr=1.0, momentum=0.5)
    ps = [group["params"][0] for group in groups]
    (rows,), (columns,) = moves(optimizer, ps[0], [matrix]), moves(optimizer, ps[1], [embedding])
    ps[0].grad = ps[1].grad = None
    torch.testing.assert_close(rows, matrix / matrix.square().mean(1, keepdim=True).sqrt())
    torch.testing.assert_close(columns, embedding / embedding.square().mean(0, keepdim=True).sqrt())
    (head,) = moves(optimizer, ps[2], [first, second])[1:]
    m = 0.25 * first + 0.5 * second
    torch.testing.assert_close(head, m / m.square().mean(1, keepdim=True).sqrt())
    assert [sum(v.numel() > 1 for v in optimizer.state[p].values()) for p in ps] == [0, 0, 1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: SCALE([{"params": [nn.Parameter(torch.ones(3))]}]), "SCALE needs matrices, parameter 0 has shape"),
        (lambda p: Ano([p], betas=(0.9, 0.4)), r"Ano: betas must be .*the second in \[0.5, 1\), got \(0.9, 0.4\)"),
        (lambda p: Ano([p], betas=("a", 0.9)), r"Ano: betas must be two numbers, .*got \('a', 0.9\)"),
        (lambda p: Anolog([p], beta2=0.4), r"Anolog: beta2 must be in \[0.5, 1\), got 0.4"),
        (lambda p: AlphaAdam([p], alpha_max=0.5), r"alpha_max must be in \[1, inf\), got 0.5"),
        (lambda p: LionK([p], kappa="l3"), "LionK: kappa must be one of .*'nuclear'.*got 'l3'"),
        (lambda p: LionK([p], kappa="dead"), "LionK: kappa='dead' needs e"),
        (lambda p: LionK([p], kappa="lp", p=1.0), r"LionK: p must be in \(1, inf\), got 1.0"),
        (lambda p: LionK([p], kappa="l2", e=0.1), "LionK: kappa='l2' does not read e=0.1"),
        (lambda p: LionK([p], kappa="topk", k=0.0), r"LionK: k must be in \(0, 1\], got 0.0"),
        (lambda p: LARS([p], nesterov=True, momentum=0.0), "LARS: nesterov needs momentum > 0"),
        (lambda p: LARS([p], nesterov=True, dampening=0.1), "LARS: nesterov needs .*dampening = 0"),
    ],
)
def test_refused(make, match) -> None:
    with pytest.raises(ValueError, match=match):
        make(nn.Parameter(torch.ones(2, 2)))


def test_a_chain_that_lacks_what_a_rule_reads() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="kappa='huber' needs e"):
        Optimizer([p], chain(rules.lion(sign=False), rules.subgradient("huber"), rules.descend())).step()
    with pytest.raises(ValueError, match="selective compares with the memory before the step"):
        Optimizer([p], chain(rules.lion(), rules.selective(), rules.descend())).step()
