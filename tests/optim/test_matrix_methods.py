"""Matrix methods beside Muon: identities of their papers, a transcription where nothing is recorded, bad input."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.memory import inverse_roots
from polyak.optim import (
    FISMO,
    NAMO,
    NAMOD,
    AuON,
    CMuon,
    HybridAuON,
    MatrixMethod,
    Muon,
    Optimizer,
    chain,
    factory,
    rules,
)
from polyak.optim.engine import units
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Rule
from polyak.optim.vocabulary.matrices import Polar
from tests.optim.moves import moves, random

METHODS: list[type[MatrixMethod]] = [NAMO, NAMOD, AuON, HybridAuON, CMuon, FISMO]
SEEDS = st.integers(0, 2**31)
EXECUTIONS = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]
EXACT: dict[str, Any] = {"ns_dtype": torch.float64}


def weight(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


def quintic(u: np.ndarray) -> np.ndarray:
    """Five Newton-Schulz steps of the muon card, in NumPy."""
    x = (u.T if u.shape[0] > u.shape[1] else u) / (np.linalg.norm(u) + 1e-7)
    for _ in range(5):
        y = x @ x.T
        x = 3.4445 * x + (-4.7750 * y + 2.0315 * y @ y) @ x
    return x.T if u.shape[0] > u.shape[1] else x


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (9, 4)])
def test_cautious_muon_is_the_card(shape: tuple[int, int], nesterov: bool, execution: Any) -> None:
    """b <- lerp(b, g, 1 - beta); phi from b * g, over its mean; u = (g + beta * (b - g)) * phi; then Newton-Schulz."""
    start, *gradients = random(3, *[shape] * 6)
    p = nn.Parameter(start.clone())
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2, "nesterov": nesterov}
    optimizer = CMuon([p], execution=execution, **options, **EXACT)
    w, b = start.numpy().copy(), np.zeros(shape)
    for g in (t.numpy() for t in gradients):
        b = b + 0.2 * (g - b)
        phi = (b * g > 0).astype(float)
        phi /= max(phi.mean(), 1e-3)
        u = (g + 0.8 * (b - g) if nesterov else b) * phi
        w = w * (1 - 0.1 * 0.2) - 0.1 * math.sqrt(max(1.0, shape[0] / shape[1])) * quintic(u)
        p.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-11, atol=1e-13)


def test_the_mask_of_cautious_muon_is_taken_before_nesterov() -> None:
    """Where only the entries that are read out agree with the gradient, they are masked all the same."""
    p = weight(2, 2)
    optimizer = CMuon([p], momentum=0.5, **EXACT)
    first, second = torch.full((2, 2), 1.0).double(), torch.tensor([[-0.3, 1.0], [1.0, 1.0]]).double()
    moves(optimizer, p, [first])
    (move,) = moves(optimizer, p, [second])
    ahead = 0.5 * second + 0.5 * optimizer.state[p]["momentum_buffer"]
    assert ahead[0, 0] * second[0, 0] > 0
    masked = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).numpy() * ahead.numpy()
    np.testing.assert_allclose(move.numpy(), 0.02 * quintic(masked), rtol=1e-4, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([(4, 7), (6, 3), (4, 2, 3, 3)]), st.booleans())
def test_namo_of_a_steady_gradient_is_muon(seed: int, shape: tuple[int, ...], nesterov: bool) -> None:
    """Without noise |U| / sqrt(v) is 1 after the corrections, but for Nesterov's 1 + momentum^t at the start."""
    (g,) = random(seed, shape)
    p, q = weight(*shape), weight(*shape)
    h: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.0, "nesterov": nesterov, **EXACT}
    sized = moves(NAMO([p], lr=1e-3, **h), p, [g] * 4)
    plain = moves(Muon([q], lr=1e-3, adjust_lr=None, **h), q, [g] * 4)
    for t, (a, b) in enumerate(zip(sized, plain, strict=True), 1):
        ahead = (1 - 0.9 ** (t + 1)) / (1 - 0.9**t) if nesterov else 1.0
        torch.testing.assert_close(a, b * 0.2 * math.sqrt(max(shape[:2])) * ahead, rtol=1e-5, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([NAMO, NAMOD]))
def test_a_spike_moves_namo_by_no_more_than_the_limit(seed: int, kind: type[NAMO]) -> None:
    g, spike = random(seed, (4, 6), (4, 6))
    p = weight(4, 6)
    optimizer = kind([p], lr=1e-2, weight_decay=0.0, ns_coefficients="svd", clip_step=1e-3)
    for move in moves(optimizer, p, [g, 1e4 * spike]):
        assert float(torch.linalg.matrix_norm(move, 2)) <= 1e-3 * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_namo_d_with_equal_columns_steps_alike_in_all(seed: int) -> None:
    """clamp_c = 1 gives every column the mean; without it noisy columns step less than steady ones."""
    g, noise = random(seed, (5, 2), (5, 2))
    p, q = weight(5, 2), weight(5, 2)
    h: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "ns_coefficients": "svd", "nesterov": False}
    stream = [torch.stack([g[:, 0], s * noise[:, 1]], 1) for s in (1, -1) * 4]
    alike = moves(NAMOD([p], clamp_c=1.0, **h), p, stream)[-1].norm(dim=0)
    free = moves(NAMOD([q], clamp_c=0.0, **h), q, stream)[-1].norm(dim=0)
    torch.testing.assert_close(alike[0], alike[1])
    assert free[1] < 0.5 * free[0]


def test_weight_decay_of_namo_stops_at_zero() -> None:
    for kind in (NAMO, NAMOD):
        p = nn.Parameter(torch.ones(2, 3).double())
        p.grad = torch.eye(2, 3).double() * 1e3
        optimizer = kind([p], lr=50.0, weight_decay=4.0, ns_coefficients="svd")
        optimizer.step()
        assert float(p.detach().abs().max()) <= 1.0 + 1e-12, "no more than the capped step is left"


@pytest.mark.parametrize("kind", METHODS)
def test_a_gradient_of_zeros_moves_nothing(kind: type[MatrixMethod]) -> None:
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = kind([p], weight_decay=0.0)
    for _ in range(3):
        p.grad = torch.zeros(3, 4)
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, 4))
    p.grad = torch.ones(3, 4)
    optimizer.step()
    assert bool(p.isfinite().all())


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([(), (1,), (7,), (3, 5), (40, 50)]), st.floats(0.1, 5.0))
def test_the_brake_of_auon_is_between_its_bounds(seed: int, shape: tuple[int, ...], gamma: float) -> None:
    (g,) = random(seed, shape)
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = AuON([{"params": [p], "role": "matrix"}], lr=1.0, gamma=gamma, momentum=0.0, nesterov=False)
    p.grad = g
    r = optimizer.diagnostics()["parameter 0 of group 0"]["brake"]
    assert math.sqrt(1 + gamma**2 / p.numel()) * (1 - 1e-6) <= r <= math.cosh(gamma) * (1 + 1e-6)
    if p.numel() == 1:
        assert r == pytest.approx(math.cosh(gamma), rel=1e-5)
    optimizer.step()
    torch.testing.assert_close(-p.detach() * r, g, rtol=1e-6, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(-3, 3))
def test_only_the_papers_auon_forgets_the_scale(seed: int, power: float) -> None:
    gradients = random(seed, *[(6, 4)] * 3)
    moved = {}
    for variant in ("paper", "head"):
        p, q = weight(6, 4), weight(6, 4)
        h: dict[str, Any] = {"variant": variant, "lr": 1.0, "gamma": 1.0}
        moved[variant] = (
            moves(AuON([p], **h), p, gradients),
            moves(AuON([q], **h), q, [g * 10**power for g in gradients]),
        )
    for one, other in zip(*moved["paper"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
        assert float(torch.linalg.matrix_norm(one, 2)) < math.sqrt(6 / 4)
    for one, other in zip(*moved["head"], strict=True):
        torch.testing.assert_close(one * 10**power, other, rtol=1e-3, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([(4, 6), (5, 3), (3, 2, 2, 2)]))
def test_fismo_that_never_forgets_is_muon(seed: int, shape: tuple[int, ...]) -> None:
    gradients = random(seed, *[shape] * 3)
    p, q = weight(*shape), weight(*shape)
    h: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, **EXACT}
    whitened = moves(FISMO([p], beta_fisher=1.0, **h), p, gradients)
    plain = moves(Muon([q], nesterov=False, adjust_lr=None, **h), q, gradients)
    for a, b in zip(whitened, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_fismo_turns_with_its_gradients(seed: int) -> None:
    """G -> U G V^T gives D -> U D V^T."""
    *gradients, a, b = random(seed, (4, 6), (4, 6), (4, 4), (6, 6))
    u, v = torch.linalg.qr(a)[0], torch.linalg.qr(b)[0]
    p, q = weight(4, 6), weight(4, 6)
    h: dict[str, Any] = {"normalize_stats": True, "damping": 0.1, **EXACT}
    straight = moves(FISMO([p], **h), p, gradients)
    turned = moves(FISMO([q], **h), q, [u @ g @ v.T for g in gradients])
    for one, other in zip(straight, turned, strict=True):
        torch.testing.assert_close(u @ one @ v.T, other, rtol=1e-6, atol=1e-9)


def test_only_normalized_statistics_of_fismo_forget_the_scale() -> None:
    gradients = random(1, *[(4, 6)] * 3)
    for normalize in (True, False):
        p, q = weight(4, 6), weight(4, 6)
        h: dict[str, Any] = {"normalize_stats": normalize, "damping": 0.1, "ns_eps": 1e-14, **EXACT}
        one = moves(FISMO([p], **h), p, gradients)[-1]
        other = moves(FISMO([q], **h), q, [1000 * g for g in gradients])[-1]
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9) == normalize


def test_fismo_keeps_its_factors_between_intervals_and_leaves_long_sides() -> None:
    gradients = random(2, *[(3, 8)] * 4)
    p = weight(3, 8)
    with pytest.warns(UserWarning, match=r"FISMO: a side of \(3, 8\) is longer than max_dim=5 and is not whitened"):
        optimizer = FISMO([p], update_interval=3, max_dim=5, **EXACT)
    seen = []
    for g in gradients:
        moves(optimizer, p, [g])
        seen.append(optimizer.state[p]["row_factor"].clone())
        assert optimizer.state[p]["column_factor"].numel() == 0
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[2], seen[3])
    torch.testing.assert_close(seen[3].trace(), torch.tensor(3.0).double())


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 9))
def test_inverse_roots(seed: int, size: int) -> None:
    (a,) = random(seed, (2, size, size))
    x = a @ a.mT + 0.1 * torch.eye(size)
    root = inverse_roots(x)
    torch.testing.assert_close(root @ x @ root, torch.eye(size).double().expand(2, -1, -1), rtol=1e-8, atol=1e-8)
    assert bool(inverse_roots(torch.zeros(2, 2).fill_diagonal_(0.0)[None][:, :1, :1] + 1).isfinite().all())
    with pytest.raises(ValueError, match="square matrices"):
        inverse_roots(torch.ones(2, 3))
    with pytest.raises(TypeError, match="real floating"):
        inverse_roots(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("execution", ["batched", pytest.param("compiled", marks=pytest.mark.slow)])
def test_stacks_of_equal_matrices_step_as_each_alone(kind: type[MatrixMethod], execution: Any) -> None:
    shapes = [(4, 6)] * 5 + [(6, 4)] * 3 + [(4, 6), (3, 2, 2, 2), (3, 2, 2, 2)]
    starts = random(5, *shapes)
    h: dict[str, Any] = {} if kind is AuON else EXACT
    many = [nn.Parameter(t.clone()) for t in starts]
    alone = [nn.Parameter(t.clone()) for t in starts]
    optimizers = kind(many, execution=execution, **h), kind(alone, execution="eager", **h)
    for t in range(4):
        for i, (p, q, g) in enumerate(zip(many, alone, random(20 + t, *shapes), strict=True)):
            p.grad = q.grad = None if t == 2 and i % 3 == 0 else g  # so that members of a stack differ in time
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(many, alone, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@factory
def weighed(results: int) -> Rule:
    """Each matrix times a number that goes with it; with 2 results also that number, twice."""

    def both(stack: Tensor, number: Tensor) -> Any:
        scaled = stack * number.view(-1, 1, 1)
        return (scaled, 2 * number) if results == 2 else scaled

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        number = c.sum(x.u)
        if results == 1:
            return x.but(u=c.matrix(both, x.u, along=(number,))), {}
        u, twice = c.matrices(both, 2, x.u, along=(number,))
        return x.but(u=u * twice / 2), {}

    return Rule("weighed", update)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("results", [1, 2])
def test_a_matrix_function_takes_what_goes_with_each_tensor(results: int, execution: Any) -> None:
    gradients = random(4, (3, 5), (3, 5), (200, 100))
    params = [weight(*g.shape) for g in gradients]
    optimizer = Optimizer(params, chain(weighed(results), rules.descend()), lr=1.0, execution=execution)
    for p, g in zip(params, gradients, strict=True):
        p.grad = g
    optimizer.step()
    for p, g in zip(params, gradients, strict=True):
        torch.testing.assert_close(-p.detach(), g * g.sum() ** results, rtol=1e-10, atol=0)


@pytest.mark.parametrize("execution", ["batched", pytest.param("compiled", marks=pytest.mark.slow)])
def test_small_matrices_of_muon_go_as_one_array(execution: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes, and solutions, are counted by stacks and not by tensors."""
    seen: list[int] = []
    pieces = units.Unit.pieces

    def counted(self: units.Unit, *given: Any) -> list[units.Piece]:
        found = pieces(self, *given)
        seen.append(len(found))
        return found

    monkeypatch.setattr(units.Unit, "pieces", counted)
    params = [nn.Parameter(t) for t in random(1, *[(8, 8)] * 60)]
    optimizer = Muon(params, execution=execution)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert seen == [1]


RANGES: list[tuple[type[MatrixMethod], dict[str, Any], str]] = [
    (NAMO, {"lr": -1.0}, "lr"), (NAMO, {"momentum": 1.0}, "momentum"), (NAMO, {"beta2": 1.0}, "beta2"),
    (NAMO, {"eps": 0.0}, "eps"), (NAMO, {"ns_steps": 0}, "ns_steps"), (NAMO, {"ns_steps": 100}, "ns_steps"),
    (NAMO, {"scale": 0.0}, "scale"), (NAMO, {"clip_step": 0.0}, "clip_step"),
    (NAMO, {"weight_decay": -0.1}, "weight_decay"),
    (NAMOD, {"clamp_c": -0.1}, "clamp_c"), (NAMOD, {"clamp_c": 1.5}, "clamp_c"), (NAMOD, {"eps": 0.0}, "eps"),
    (AuON, {"gamma": 0.0}, "gamma"), (AuON, {"gamma": 50.5}, "gamma"), (AuON, {"gamma": math.nan}, "gamma"),
    (AuON, {"momentum": 1.0}, "momentum"), (AuON, {"variant": "v3"}, "variant"),
    (AuON, {"weight_decay": -1.0}, "weight_decay"),
    (HybridAuON, {"ns_steps": 0}, "ns_steps"), (HybridAuON, {"gamma": math.inf}, "gamma"),
    (CMuon, {"ns_steps": 0}, "ns_steps"), (CMuon, {"ns_coefficients": (1.0, 2.0)}, "ns_coefficients"),
    (CMuon, {"adjust_lr": "other"}, "adjust_lr"), (FISMO, {"damping": 0.0}, "damping"),
    (FISMO, {"beta_fisher": 1.5}, "beta_fisher"), (FISMO, {"beta_fisher": -0.1}, "beta_fisher"),
    (FISMO, {"momentum": 1.0}, "momentum"), (FISMO, {"update_interval": 0}, "update_interval"),
    (FISMO, {"max_dim": 0}, "max_dim"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "name"), RANGES)
def test_ranges(kind: type[MatrixMethod], options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: {name} must be .*got"):
        kind([weight(2, 2)], **options)


@pytest.mark.parametrize("kind", METHODS)
def test_vectors_in_a_group_of_matrices_are_refused(kind: type[MatrixMethod]) -> None:
    options: dict[str, Any] = {"variant": "paper"} if issubclass(kind, AuON) else {}
    for shape in ((3,), ()):
        with pytest.raises(ValueError, match=rf'{kind.__name__} needs matrices, v has shape .*role="vector"'):
            kind([{"params": [("v", weight(*shape))], "role": "matrix"}], **options)
    optimizer = kind([weight(2, 2)], **options)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match='role="vector"'):
        optimizer.add_param_group({"params": [weight(3)]})
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("kind", METHODS)
def test_only_vectors_are_steps_of_adamw(kind: type[MatrixMethod]) -> None:
    """A list without matrices has no group of the main rule."""
    p = nn.Parameter(torch.ones(3))
    optimizer = kind([p])
    assert [group["role"] for group in optimizer.param_groups] == ["rest"]
    p.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[p]) == {"exp_avg", "exp_avg_sq", "step"}


def test_fismo_refuses_a_gradient_that_would_spoil_its_factors() -> None:
    p = weight(2, 3)
    optimizer = FISMO([("w", p)])
    p.grad = torch.full((2, 3), math.nan).double()
    with pytest.raises(RuntimeError, match="non-finite gradient in w; nothing was changed"):
        optimizer.step()
    assert not optimizer.state and not p.any()


def test_polar_is_what_the_options_say() -> None:
    assert Polar.of({"ns_steps": 3, "ns_coefficients": [[1.5, -0.5, 0.0]]}) == Polar(((1.5, -0.5, 0.0),), 3)
    assert Polar.of({"ns_coefficients": (2.0, -1.5, 0.5)}).coefficients == ((2.0, -1.5, 0.5),)
