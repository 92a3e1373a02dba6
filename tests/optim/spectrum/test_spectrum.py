"""Spectra of a batch's curvature: exact where they can be, and without a trace on the model."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import polyak.optim
from polyak.optim.spectrum import (
    BatchCurvature,
    SpectrumLearner,
    Tridiagonal,
    batch_eigenvalue,
    effective_batch,
    heavy_ball_optimum,
    lanczos,
    noise_edge,
    noise_variance,
    scaled_lr,
    spectrum,
    stable_lr,
)
from tests.optim.moves import random
from tests.reproduce.run import check
from tests.reproduce.vector import RECORDED, Vector


def symmetric(size: int, seed: int = 0) -> Tensor:
    (a,) = random(seed, (size, size))
    return a + a.T


def test_vector() -> None:
    assert all(check(Vector(RECORDED, name), ["eager"])[0] == "reproduced" for name in SpectrumLearner.vectors)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 12), seed=st.integers(0, 100))
def test_all_steps_give_the_spectrum_and_weights_that_add_up_to_one(size: int, seed: int) -> None:
    a, (v,) = symmetric(size, seed), random(seed + 1, (size,))
    found = lanczos(lambda x: a @ x, v, size).ritz()
    torch.testing.assert_close(found.nodes, torch.linalg.eigvalsh(a), rtol=1e-8, atol=1e-8)
    v = v / v.norm()
    torch.testing.assert_close(found.weights.sum(), torch.ones((), dtype=torch.float64))
    for power in (1, 2, 3):  # the quadrature is exact for polynomials
        moment = (found.weights * found.nodes**power).sum()
        torch.testing.assert_close(moment, v @ torch.linalg.matrix_power(a, power) @ v, rtol=1e-8, atol=1e-7)


def test_it_ends_where_the_subspace_is_one_that_the_operator_does_not_leave() -> None:
    a = torch.diag(torch.tensor([1.0, 1.0, 5.0, 5.0, 5.0], dtype=torch.float64))
    found = lanczos(lambda x: a @ x, torch.ones(5, dtype=torch.float64), 5)
    assert len(found.alpha) == 2
    torch.testing.assert_close(found.ritz().nodes, torch.tensor([1.0, 5.0], dtype=torch.float64))
    torch.testing.assert_close(found.ritz().weights, torch.tensor([0.4, 0.6], dtype=torch.float64))
    zero = lanczos(torch.zeros_like, torch.ones(3, dtype=torch.float64), 3)
    assert zero.alpha.tolist() == [0.0] and not zero.beta.numel()


@pytest.mark.parametrize("start", ["gaussian", "rademacher"])
def test_an_average_over_probes_tells_the_trace(start: Any) -> None:
    a = symmetric(30)
    found = spectrum(lambda x: a @ x, 30, steps=30, probes=200, start=start, dtype=torch.float64)
    torch.testing.assert_close(found.weights.sum(), torch.ones((), dtype=torch.float64))
    assert bool((found.nodes[1:] >= found.nodes[:-1]).all())
    assert float((found.weights * found.nodes).sum()) == pytest.approx(float(a.diagonal().mean()), abs=0.2)


def test_torchs_random_state_is_not_touched_and_the_same_is_found_again() -> None:
    a, before = symmetric(8), torch.random.get_rng_state()
    one, other = (spectrum(lambda x: a @ x, 8, 4, dtype=torch.float64) for _ in range(2))
    assert torch.equal(one.nodes, other.nodes) and torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("steps", "nearest"), [(0, 1), (-2, 1), (9, 4)])
def test_steps_out_of_range_are_clamped_with_a_warning(steps: int, nearest: int) -> None:
    a = symmetric(4)
    with pytest.warns(UserWarning, match=rf"steps must be in 1\.\.4, got {steps}; {nearest} is taken"):
        found = lanczos(lambda x: a @ x, torch.ones(4, dtype=torch.float64), steps)
    assert len(found.alpha) == nearest


@pytest.mark.parametrize("probes", [0, -1])
def test_probes_below_one(probes: int) -> None:
    with pytest.raises(ValueError, match=rf"spectrum: probes must be in \[1, inf\), got {probes}"):
        spectrum(lambda x: x, 3, 2, probes=probes)


@pytest.mark.parametrize(("name", "value"), [("probes", 1.5), ("probes", True), ("steps", "3"), ("steps", 2.0)])
def test_counts_of_another_kind(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an? (integer|number) in"):
        spectrum(lambda x: x, 3, **{"steps": 2, name: value})


def test_starts_and_products_that_are_refused() -> None:
    for start in (torch.zeros(3), torch.ones(3, 1), torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match="start must be a finite vector other than 0"):
            lanczos(lambda x: x, start, 2)
    with pytest.raises(TypeError, match=r"start must be floating, got torch\.int64"):
        lanczos(lambda x: x, torch.ones(3, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"start must be one of \['gaussian', 'rademacher'\]"):
        spectrum(lambda x: x, 3, start="ones")  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="product 1 of 2 is not finite"):
        lanczos(lambda x: x * torch.inf, torch.ones(3), 2)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    (x,) = random(1, (6, 3))
    return x, torch.tensor([0, 1, 1, 0, 1, 0])


def dense(curvature: BatchCurvature) -> Tensor:
    return torch.stack([curvature(e) for e in torch.eye(curvature.size, dtype=torch.float64)])


def test_the_hessian_is_autograds() -> None:
    model, (x, y) = net(), batch()
    shapes = [(n, p.shape) for n, p in model.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for _, s in shapes])
        named = {n: part.view(s) for (n, s), part in zip(shapes, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    model.eval()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    want = torch.autograd.functional.hessian(loss, flat)
    got = dense(BatchCurvature(model, x, lambda out: F.cross_entropy(out, y)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gauss_newton_is_the_jacobians_and_that_of_a_linear_model_its_hessian() -> None:
    model, (x, y) = net().eval(), batch()
    got = dense(BatchCurvature(model, x, lambda out: F.cross_entropy(out, y), kind="ggn"))
    torch.testing.assert_close(got, got.T, rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(got).min()) > -1e-12
    names = [n for n, _ in model.named_parameters()]
    jacobian = torch.func.jacrev(lambda ps: torch.func.functional_call(model, ps, (x,)))(dict(model.named_parameters()))
    j = torch.cat([jacobian[n].detach().reshape(12, -1) for n in names], 1)
    out = model(x).detach()
    inner = torch.autograd.functional.hessian(lambda o: F.cross_entropy(o.view(6, 2), y), out.reshape(-1))
    torch.testing.assert_close(got, j.T @ inner @ j, rtol=1e-9, atol=1e-12)
    linear = nn.Linear(3, 2).double()
    both = [dense(BatchCurvature(linear, x, lambda out: F.cross_entropy(out, y), kind=k)) for k in ("hessian", "ggn")]
    torch.testing.assert_close(both[0], both[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("mode", [None, "train", "eval"])
def test_the_model_is_left_as_it_was(kind: Any, mode: Any) -> None:
    model, (x, y) = net(), batch()
    model[2].eval()
    F.cross_entropy(model(x), y).backward()
    before = {n: b.clone() for n, b in model.named_buffers()}
    grads = [p.grad for p in model.parameters()]
    kept, modes, state = [g.clone() for g in grads], [m.training for m in model.modules()], torch.get_rng_state()
    curvature = BatchCurvature(model, x, lambda out: F.cross_entropy(out, y), kind, mode)
    spectrum(curvature, curvature.size, 3, dtype=torch.float64)
    assert all(p.grad is g and torch.equal(g, k) for p, g, k in zip(model.parameters(), grads, kept, strict=True))
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)


def test_parameters_without_a_part_in_the_loss_have_zeros_and_frozen_ones_none() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "other": nn.Linear(3, 1), "frozen": nn.Linear(3, 1)})
    model.frozen.requires_grad_(False)
    model.forward = lambda x: model.used(x)  # type: ignore[method-assign]
    curvature = BatchCurvature(model, torch.ones(4, 3), lambda out: out.square().sum())
    assert curvature.size == 8 + 4
    product = curvature(torch.ones(12))
    assert product[:8].all() and not product[8:].any()


def test_a_loss_without_curvature_has_none() -> None:
    curvature = BatchCurvature(nn.Linear(3, 2), torch.ones(4, 3), lambda out: out.sum())
    assert not curvature(torch.ones(curvature.size)).any()


def test_curvatures_that_are_refused() -> None:
    linear, x = nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"kind must be one of \['hessian', 'ggn'\], got 'fisher'"):
        BatchCurvature(linear, x, lambda out: out.sum(), kind="fisher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode must be one of"):
        BatchCurvature(linear, x, lambda out: out.sum(), mode="test")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the loss must be a tensor of one element"):
        BatchCurvature(linear, x, lambda out: out)
    with pytest.raises(ValueError, match="vector must have 8 elements, got 7"):
        BatchCurvature(linear, x, lambda out: out.square().sum())(torch.ones(7))
    with pytest.raises(ValueError, match="no parameter of the model requires gradients"):
        BatchCurvature(nn.ReLU(), x, lambda out: out.sum())


class Once(torch.autograd.Function):
    """Differentiable once; says so as torch does of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise RuntimeError("derivative for aten::fused_backward is not implemented")


def test_an_operation_without_a_second_derivative_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"no second derivative: .*aten::fused_backward"):
        BatchCurvature(nn.Linear(3, 2), torch.ones(1, 3), lambda out: Once.apply(out).sum())


@settings(deadline=None, max_examples=30)
@given(full=st.floats(0.1, 100.0), batch=st.integers(1, 4999), noise=st.floats(1e-6, 1e-1))
def test_the_law_of_the_batch_and_its_inverse(full: float, batch: int, noise: float) -> None:
    edge = noise_edge(batch, 1000, 5000, noise)
    seen = batch_eigenvalue(full, batch, 1000, 5000, noise)
    assert seen >= max(full, edge) * (1 - 1e-12)
    assert batch_eigenvalue(-full, batch, 1000, 5000, noise) == -seen
    if full > edge / 2:
        # what noise adds is a difference of eigenvalues, which its rounding is a share of
        slack = 1e-14 * seen * full * batch / (1 - batch / 5000) / 1000
        assert noise_variance(full, seen, batch, 1000, 5000) == pytest.approx(noise, rel=1e-6, abs=slack)
    assert batch_eigenvalue(full, 5000, 1000, 5000, noise) == full


def test_the_largest_stable_lr_grows_with_the_batch_until_the_noise_is_gone() -> None:
    def most(batch: int) -> float:
        return stable_lr(batch_eigenvalue(1.0, batch, 10**6, 10**9, 1.0))

    assert most(10**4) / most(10**2) == pytest.approx(10, rel=1e-3)  # the edge of the noise
    assert 1.7 < most(10**7) / most(10**6) < 1.9 and most(10**8) / most(10**7) < 1.11
    assert stable_lr(4.0, 0.9) == pytest.approx(0.95)
    seen = batch_eigenvalue(1.0, 10**6, 10**6, 10**9, 1.0), batch_eigenvalue(1.0, 10**7, 10**6, 10**9, 1.0)
    assert scaled_lr(0.1, 10**6, 10**7, "saturating", seen) == pytest.approx(0.1 * most(10**7) / most(10**6))


def test_numbers_out_of_range() -> None:
    for size in (0, 11):
        with pytest.raises(ValueError, match=rf"batch must be in 1\.\.10, got {size}"):
            effective_batch(size, 10)
    with pytest.raises(ValueError, match="parameters must be positive"):
        noise_edge(1, 0, 10, 1.0)
    with pytest.raises(ValueError, match="variance must be finite and at least 0"):
        noise_edge(1, 5, 10, -1.0)
    with pytest.raises(ValueError, match="a full batch has no noise"):
        noise_variance(1.0, 2.0, 10, 5, 10)
    with pytest.raises(ValueError, match="eigenvalue must be positive"):
        stable_lr(0.0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        stable_lr(1.0, 1.0)
    with pytest.raises(ValueError, match="smallest must be in"):
        heavy_ball_optimum(1.0, 2.0)
    with pytest.raises(ValueError, match="rule must be one of"):
        scaled_lr(0.1, 8, 16, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seen, two eigenvalues, is read by rule='saturating' alone"):
        scaled_lr(0.1, 8, 16, "saturating")
    with pytest.raises(ValueError, match="base_batch must be positive"):
        scaled_lr(0.1, 0, 16)


class Quadratic(nn.Module):
    """Half the weighted square of a vector."""

    def __init__(self, eigenvalues: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))
        self.eigenvalues = torch.tensor(eigenvalues, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 * (self.eigenvalues * self.w.square()).sum()


def curvature(model: nn.Module, scale: float = 1.0) -> BatchCurvature:
    return BatchCurvature(model, torch.tensor(scale, dtype=torch.float64), lambda loss: loss)


def test_the_learner_finds_polyaks_optimum_of_a_quadratic() -> None:
    model = Quadratic([25.0, 9.0, 2.0, 0.4])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    SpectrumLearner(optimizer, smallest="min").step(curvature(model))
    lr, momentum = heavy_ball_optimum(25.0, 0.4)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (pytest.approx(lr), pytest.approx(momentum))
    for _ in range(300):
        optimizer.zero_grad()
        model(torch.tensor(1.0)).backward()
        optimizer.step()
    assert float(model.w.detach().abs().max()) < 1e-8


def test_choices_of_the_smallest_and_limits() -> None:
    model = Quadratic([8.0, 2.0, -3.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5, weight_decay=0.5)
    group = optimizer.param_groups[0]
    SpectrumLearner(optimizer).step(curvature(model))
    assert group["momentum"] == pytest.approx(heavy_ball_optimum(8.0, 2.0)[1])  # negative ones are ignored
    SpectrumLearner(optimizer, smallest="wd").step(curvature(model))
    assert group["lr"] == pytest.approx(heavy_ball_optimum(8.0, 0.5)[0])
    before = group["momentum"]
    SpectrumLearner(optimizer, smallest="wd", momentum=False, safety=0.5).step(curvature(model))
    assert group["lr"] == pytest.approx(0.5 * 2 / 8.5) and group["momentum"] == before
    SpectrumLearner(optimizer, smallest="min", max_momentum=0.1, max_lr=0.01).step(curvature(model))
    assert (group["lr"], group["momentum"]) == (0.01, 0.1)
    SpectrumLearner(optimizer, smallest="min", smoothing=0.5, min_lr=0.2).step(curvature(model))
    assert group["lr"] == 0.2
    only = Quadratic([3.0])
    optimizer = torch.optim.SGD(only.parameters(), lr=1.0, momentum=0.5)
    SpectrumLearner(optimizer, steps=1).step(curvature(only))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 3)


def test_the_learner_keeps_its_values_where_there_is_nothing_to_learn_from() -> None:
    model = Quadratic([-1.0, -2.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    learner = SpectrumLearner(optimizer)
    with pytest.warns(UserWarning, match="no eigenvalue is positive; lr and momentum stay"):
        learner.step(curvature(model))
    with pytest.warns(UserWarning, match="is not finite; lr and momentum stay"):
        assert learner.step(curvature(model, torch.inf)) is None
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.3, 0.5)


def test_every_counts_calls_over_a_resume() -> None:
    model = Quadratic([2.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    learner, other = (SpectrumLearner(optimizer, every=3) for _ in range(2))
    assert [learner.step(curvature(model)) is not None for _ in range(2)] == [True, False]
    other.load_state_dict(learner.state_dict())
    assert [other.step(curvature(model)) is not None for _ in range(2)] == [False, True]


@pytest.mark.parametrize("make", [torch.optim.SGD, polyak.optim.SGD])
def test_what_is_a_tensor_stays_that_tensor(make: Any) -> None:
    model = Quadratic([25.0, 0.4])
    lr = torch.tensor(1.0)
    optimizer = make(model.parameters(), lr=lr, momentum=0.5)
    SpectrumLearner(optimizer, smallest="min").step(curvature(model))
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(heavy_ball_optimum(25.0, 0.4)[0])
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(heavy_ball_optimum(25.0, 0.4)[1])


def test_a_group_that_is_changed_on_the_way_is_refused() -> None:
    model = Quadratic([25.0, 0.4])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    learner = SpectrumLearner(optimizer)
    optimizer.param_groups[0]["dampening"] = 0.5
    with pytest.raises(ValueError, match=r"dampening must be 0: the buffer is undampened, got 0\.5"):
        learner.step(curvature(model))
    assert optimizer.param_groups[0]["lr"] == 1.0 and learner.state_dict() == {"calls": 0}


def test_learners_that_are_refused() -> None:
    params = [nn.Parameter(torch.ones(2))]
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    bad: list[tuple[str, Any, type[Exception]]] = [
        ("steps", 0, ValueError), ("every", 0, ValueError), ("every", 1.5, TypeError), ("smallest", "max", ValueError),
        ("safety", 0.0, ValueError), ("smoothing", 1.0, ValueError), ("max_momentum", 1.0, ValueError),
        ("min_lr", -1.0, ValueError),
    ]  # fmt: skip
    for name, value, kind in bad:
        with pytest.raises(kind, match=f"SpectrumLearner: {name} must be"):
            SpectrumLearner(sgd, **{name: value})
    for optimizer in (torch.optim.Adam(params), torch.optim.RMSprop(params, momentum=0.9), polyak.optim.Lion(params)):
        words = rf"holds for momentum SGD, polyak\.optim\.SGD or torch\.optim\.SGD; got {type(optimizer).__name__}"
        with pytest.raises(TypeError, match=words):
            SpectrumLearner(optimizer)
    with pytest.raises(ValueError, match="nesterov must be False"):
        SpectrumLearner(polyak.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True))
    with pytest.raises(ValueError, match="dampening must be 0"):
        SpectrumLearner(torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.5))


def test_a_spectrum_of_a_tridiagonal_matrix_by_hand() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Tridiagonal(torch.zeros(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).ritz()
    torch.testing.assert_close(found.nodes, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found.weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
