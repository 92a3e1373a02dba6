"""Polyak's step sizes with momentum, and adaptive memory: against plain transcriptions of their equations."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyak.optim
from polyak.optim import ALRHB, ALRNAG, AMSGD, AdamW, AMAdamW, Optimizer

CURVES = np.array([1.0, 0.3, 0.02])
START = np.array([1.0, -2.0, 3.0])
INFINITE = float("inf")


def halves() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(START[:1])), nn.Parameter(torch.tensor(START[1:]))]


def descend(optimizer: Optimizer, params: list[nn.Parameter], steps: int) -> list[np.ndarray]:
    """The weights, as one vector, on ``sum(CURVES * x^2) / 2``."""
    out = []
    for _ in range(steps):
        x = torch.cat([p.detach() for p in params]).numpy()
        gradients = torch.tensor(CURVES * x).split([p.numel() for p in params])
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step(loss=float((CURVES * x * x).sum() / 2))
        out.append(torch.cat([p.detach() for p in params]).numpy().copy())
    return out


def polyak_steps(kind: str, lr: float, beta: float, c: float, wd: float, steps: int, factor: float = 1.0) -> Any:
    x, before = START.copy(), START.copy()  # of nag x is the point ahead, before the last point
    d, out = 0.0, []
    for _ in range(steps):
        g, f = CURVES * x, float((CURVES * x * x).sum() / 2)
        d = beta * d + g if kind == "alr_mag" else g
        push = beta * g @ (x - before) if kind == "alr_hb" else 0.0
        eta = float(np.clip((factor * f / c + push) / (d @ d), 0, lr))
        if kind == "alr_nag":
            new = (1 - eta * wd) * x - eta * g
            x, before = new + beta * (new - before), new
        else:
            moved = beta * (x - before) if kind == "alr_hb" else 0.0
            x, before = (1 - eta * wd) * x - eta * d + moved, x
        out.append(x.copy())
    return out


@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize("lr", [0.5, INFINITE])
@pytest.mark.parametrize("kind", ["alr_mag", "alr_hb", "alr_nag"])
def test_polyak_step_sizes_over_several_tensors(kind: str, lr: float, wd: float) -> None:
    params = halves()
    optimizer = polyak.optim.get(kind)(params, lr=lr, momentum=0.8, c=0.7, weight_decay=wd)
    wanted = polyak_steps(kind, lr, 0.8, 0.7, wd, 8)
    np.testing.assert_allclose(descend(optimizer, params, 8), wanted, rtol=1e-9)


def test_the_second_version_doubles_the_gap() -> None:
    params = halves()
    optimizer = ALRHB(params, lr=INFINITE, momentum=0.8, v2=True)
    np.testing.assert_allclose(
        descend(optimizer, params, 8), polyak_steps("alr_hb", INFINITE, 0.8, 1.0, 0.0, 8, 2.0), rtol=1e-9
    )


def test_without_momentum_all_are_polyaks_step() -> None:
    runs = []
    for kind in ("alr_mag", "alr_hb", "alr_nag"):
        params = halves()
        runs.append(descend(polyak.optim.get(kind)(params, lr=INFINITE, momentum=0.0), params, 6))
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-12)
    np.testing.assert_allclose(runs[2], runs[0], rtol=1e-12)


def test_the_weights_behind_the_point_ahead() -> None:
    params = halves()
    optimizer = ALRNAG(params, lr=INFINITE, momentum=0.8)
    descend(optimizer, params, 5)
    ahead = torch.cat([p.detach() for p in params]).clone()
    x, y = START.copy(), START.copy()
    for _ in range(5):
        g = CURVES * y
        new = y - (CURVES * y * y).sum() / 2 / (g @ g) * g
        x, y = new, new + 0.8 * (new - x)
    with optimizer.at_solution():
        np.testing.assert_allclose(torch.cat([p.detach() for p in params]).numpy(), x, rtol=1e-10)
        with pytest.raises(RuntimeError, match="restore"):
            optimizer.step(loss=1.0)
    assert torch.equal(torch.cat([p.detach() for p in params]), ahead)


@pytest.mark.parametrize("kind", ["alr_mag", "alr_hb", "alr_nag"])
def test_no_step_below_the_bound_or_without_gradient(kind: str) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = polyak.optim.get(kind)([w], lb=1.0)
    for g, loss in ((0.0, 2.0), (1.0, 0.5)):
        w.grad = torch.full((3,), g)
        optimizer.step(loss=loss)
        assert bool((w == 1).all())


@pytest.mark.parametrize(
    "option", [{"c": 0.0}, {"lr": -1.0}, {"momentum": 1.0}, {"lb": INFINITE}, {"lb": float("nan")}]
)
@pytest.mark.parametrize("kind", ["alr_mag", "alr_hb", "alr_nag"])
def test_polyak_steps_out_of_range(kind: str, option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        polyak.optim.get(kind)([nn.Parameter(torch.ones(2))], **option)


def beta_of(optimizer: Optimizer, **more: Any) -> float:
    return next(iter(optimizer.diagnostics(**more).values()))["beta"]


def test_adaptive_memory_on_a_quadratic() -> None:
    """The check values of the method's description: weight of the memory, and weights after four steps."""
    h = torch.tensor([1.0, 0.1], dtype=torch.float64)
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer, betas = AMSGD([w], lr=0.5), []
    for _ in range(4):
        w.grad = h * w.detach()
        betas.append(beta_of(optimizer))
        optimizer.step()
    assert betas == pytest.approx([0, 0.9, 0, 0.373828], abs=1e-6)
    assert w.tolist() == pytest.approx([-0.04531034, 0.81087869], abs=1e-8)


@pytest.mark.parametrize("lr", [0.5, 3.0])
@pytest.mark.parametrize(("d", "beta"), [((-1.0, 1.0), 0.12), ((-0.3, 0.2), 0.535838)])
def test_the_weight_of_a_memory_at_a_constant_lr(d: tuple[float, float], beta: float, lr: float) -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AMSGD([w], lr=lr)
    w.grad = torch.tensor(d, dtype=torch.float64)
    optimizer.step()
    w.grad = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert beta_of(optimizer) == pytest.approx(beta, abs=1e-6)


def test_a_changing_lr_and_a_height_from_the_loss() -> None:
    """One step each by hand: the gap is that of the last lr, or the loss of before less this one."""
    d, g = np.array([-0.3, 0.2]), np.array([1.0, 0.0])
    for height, gap in (("linear", 0.25 * g @ d), ("loss", 0.4 - 0.5), ("shared", 0.0), ("anchored", -0.1 - d @ d / 4)):
        w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = AMSGD([w], lr=0.25, height=height)  # type: ignore[arg-type]
        w.grad = torch.tensor(d)
        optimizer.step(loss=0.4)
        optimizer.param_groups[0]["lr"] = 0.5
        w.grad = torch.tensor(g)
        wanted = np.clip((1.1 * gap / 0.5 - (d - g) @ (g + 0.1 * d)) / ((d - g) @ (d - g)), 0, 0.9)
        assert 0 < wanted < 0.9
        assert beta_of(optimizer, loss=0.5) == pytest.approx(wanted, rel=1e-9)


def am_adamw(gradients: Any, lrs: Any, x: np.ndarray, lam: float, bmax: float, wd: float) -> tuple[Any, list[float]]:
    d, v, product, last, betas = np.zeros_like(x), np.zeros_like(x), 1.0, None, []
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        v = 0.999 * v + 0.001 * g * g
        p = (1 - bmax * product) * (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        m = 1 / (p * (1 + lam * p))
        if last is None:
            beta = bmax
        else:
            gap = last * g @ (d / p + wd * x)
            top = ((1 + wd * lr) * gap / lr if lr else 0.0) - (d - g) @ (m * (g + lam * p * d)) - wd * x @ (d - g)
            beta = float(np.clip(top / ((d - g) @ (m * (d - g))), 0, bmax))
        d = ((1 - beta) * g + (lam * p + beta) * d) / (1 + lam * p)
        x = (1 - lr * wd) * x - lr * d / p
        product, last = product * beta, lr
        betas.append(beta)
    return x, betas


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize(("lam", "wd"), [(0.1, 0.0), (2.0, 0.1)])
def test_adaptive_memory_over_adams_root(execution: Any, lam: float, wd: float) -> None:
    """One weight for each tensor."""
    source = np.random.default_rng(0)
    starts, lrs = source.normal(size=(2, 5)), [0.01, 0.02, 0.0, 0.01, 0.005, 0.02]
    turns = np.array([1.0, 1.5, -0.6, -0.3, 0.5, -2.0])[:, None]
    gradients = (0.3 * source.normal(size=(2, len(lrs), 5)) + 1) * turns
    params = [nn.Parameter(torch.tensor(s)) for s in starts]
    optimizer = AMAdamW(params, lam=lam, weight_decay=wd, execution=execution)
    for t, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = lr
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g[t])
        optimizer.step()
    inner = 0
    for p, own, s in zip(params, gradients, starts, strict=True):
        x, betas = am_adamw(own, lrs, s, lam, 0.89, wd)
        np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-9)
        inner += sum(0 < b < 0.89 for b in betas)
    assert inner > 2


def test_at_its_largest_weight_it_is_adamw() -> None:
    """A constant gradient keeps the weight there."""
    w, q = (nn.Parameter(torch.tensor(START)) for _ in range(2))
    optimizer = AMAdamW([w], lr=0.01, lam=0.0, bmax=0.9, weight_decay=0.1)
    plain = AdamW([q], lr=0.01, betas=(0.9, 0.999), weight_decay=0.1)
    for _ in range(8):
        w.grad, q.grad = torch.tensor(CURVES), torch.tensor(CURVES)
        assert beta_of(optimizer) == 0.9
        optimizer.step()
        plain.step()
        torch.testing.assert_close(w, q, rtol=1e-9, atol=0)


@pytest.mark.parametrize("cls", [AMSGD, AMAdamW])
def test_adaptive_memory_out_of_range(cls: Any) -> None:
    w, v = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for option in ({"lam": -0.1}, {"bmax": 1.0}, {"bmax": -0.1}, {"lr": -1.0}, {"height": "high"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            cls([w], **option)
    for option in ({"lam": 0.5}, {"bmax": 0.5}, {"height": "shared"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be the same in all groups"):
            cls([{"params": [w]}, {"params": [v], **option}])
    for height in ("loss", "anchored", "aggregate"):
        optimizer = cls([w], height=height)
        w.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match="reads the loss"):
            optimizer.step()
    assert bool((w == 1).all())
