"""DBF-Newton: what its filter promises, and that it is an optimizer that can be saved, refused and resumed."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak.optim.solvers import Belief, DBFNewton, filter_step

SEEDS = st.integers(0, 2**31)


def pair(generator: torch.Generator, d: int) -> tuple[Tensor, Tensor]:
    """A gradient and a positive definite matrix."""
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    return torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T / d + 0.05 * eye


def problem(
    seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[nn.Linear, Callable[[int], Callable[[], Tensor]]]:
    """Logistic regression, and the closure of its t-th batch."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=generator, dtype=dtype)
    y = (x @ torch.tensor([1.0, -2.0, 0.5], dtype=dtype) > 0).to(dtype)
    model = nn.Linear(3, 1, dtype=dtype)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def closure_of(t: int) -> Callable[[], Tensor]:
        rows = slice(10 * (t % 6), 10 * (t % 6) + 10)

        def closure() -> Tensor:
            fit = nn.functional.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows])
            return fit + 0.05 * sum((p * p).sum() for p in model.parameters())

        return closure

    return model, closure_of


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6), st.floats(0.05, 0.95), st.floats(0.01, 10.0))
def test_directions_are_a_heavy_ball_with_a_matrix_for_its_retention(
    seed: int, d: int, alpha: float, beta: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    belief = filter_step(None, *pair(generator, d), alpha, beta)
    for _ in range(4):
        f, q = pair(generator, d)
        stationary = (1 - alpha**2) / beta * torch.eye(d, dtype=torch.float64)
        precision = q.inverse()
        if not bool((torch.linalg.eigvalsh(precision - stationary) > 1e-6).all()):
            precision = precision + stationary
        wanted = belief.memory(alpha, beta) @ belief.direction(0.0) - precision @ f
        belief = filter_step(belief, f, q, alpha, beta)
        torch.testing.assert_close(belief.direction(0.0), wanted, rtol=1e-7, atol=1e-7)
        assert torch.equal(belief.covariance, belief.covariance.T)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_limits(seed: int, d: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, (f, q) = filter_step(None, *pair(generator, d)), pair(generator, d)
    newton = -torch.linalg.solve(q, f)
    without_memory = filter_step(first, f, q, 1e-9, 1e9)
    torch.testing.assert_close(without_memory.direction(), newton, rtol=1e-6, atol=1e-6)
    # a wide stationary law is an ordinary Kalman filter
    alpha, beta = 1 - 1e-10, 0.3
    known = (first.covariance + beta * torch.eye(d, dtype=torch.float64)).inverse()
    kalman = (known + q.inverse()).inverse()
    got = filter_step(first, f, q, alpha, beta, eig_tol=0.0)
    torch.testing.assert_close(got.covariance, kalman, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got.mean, kalman @ (known @ first.mean + q.inverse() @ f), rtol=1e-6, atol=1e-8)


def test_it_finds_the_minimum_and_leaves_gradients_alone() -> None:
    model, closure_of = problem()
    optimizer = DBFNewton(model.parameters())
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, mark in zip(model.parameters(), marks, strict=True):
        p.grad = mark.clone()
    losses = [float(optimizer.step(closure_of(t))) for t in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p.grad, mark) for p, mark in zip(model.parameters(), marks, strict=True))
    assert set(optimizer.diagnostics()) == {"step_length", "memory_radius"}
    assert 1 / 16 <= optimizer.diagnostics()["step_length"] <= 1


def test_a_given_hessian_is_used_as_the_computed_one() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = nn.Parameter(torch.ones(3, dtype=torch.float64)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    first, second = DBFNewton([p]), DBFNewton([q])
    for rows in x.split(5):
        first.step(lambda rows=rows: 0.5 * (1 - rows @ p).square().mean())
        second.step(lambda rows=rows: 0.5 * (1 - rows @ q).square().mean(), hessian=rows.T @ rows / 5)
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["state_dict", "torch.save"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_bit_for_bit(how: str, dtype: torch.dtype) -> None:
    model, closure_of = problem(dtype=dtype)
    optimizer = DBFNewton(model.parameters(), beta=0.1)
    for t in range(3):
        optimizer.step(closure_of(t))
    other, other_closure = problem(dtype=dtype)
    other.load_state_dict(model.state_dict())
    resumed = DBFNewton(other.parameters())
    saved = optimizer.state_dict()
    if how == "torch.save":
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["beta"] == 0.1
    for t in range(3, 7):
        optimizer.step(closure_of(t))
        resumed.step(other_closure(t))
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(other), strict=True))


def test_a_copy_goes_on_by_itself() -> None:
    model, closure_of = problem()
    optimizer = DBFNewton(model.parameters())
    optimizer.step(closure_of(0))
    copied = copy.deepcopy(optimizer)
    start = values(model)
    belief = optimizer.belief()
    optimizer.step(closure_of(1))
    assert all(torch.equal(a, b) for a, b in zip(copied.param_groups[0]["params"], start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(copied.belief() or (), belief or (), strict=True))


def test_a_batch_smaller_than_the_vector_gives_a_finite_step() -> None:
    x, y = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = DBFNewton([p])
    for _ in range(3):
        optimizer.step(lambda: 0.5 * (y - x @ p).square().mean())
    assert bool(torch.isfinite(p).all())


def test_scalars_and_parameters_that_the_loss_does_not_read() -> None:
    p, unread = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="damping"):  # one direction without curvature, and nothing else
        DBFNewton([unread]).step(lambda: (unread * 2.0).sum())
    optimizer = DBFNewton([p, unread], damping=0.1)
    optimizer.step(lambda: p.square())
    assert float(p.detach().abs()) < 3.0
    assert torch.equal(unread, torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 1.0}, r"alpha must be in \(0, 1\), got 1.0"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ({"beta": 0.0}, r"beta must be in \(0, inf\), got 0.0"),
        ({"damping": -1.0}, "damping must be in"),
        ({"armijo_c": 1.5}, "armijo_c must be in"),
        ({"max_backtracks": 0}, "max_backtracks must be in"),
        ({"ridge": float("nan")}, "ridge must be in"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], words: str) -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=words):
        DBFNewton([p], **arguments)
    with pytest.raises(ValueError, match=words):
        DBFNewton([{"params": [p], **arguments}])


def test_parameters_that_are_no_vector() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="one group alone"):
        DBFNewton([{"params": [a]}, {"params": [b]}])
    with pytest.raises(ValueError, match="all float32 or all float64"):
        DBFNewton([a, b])
    with pytest.raises(ValueError, match="all float32 or all float64"):
        DBFNewton([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))])
    with pytest.raises(ValueError, match="more than 5,000"):
        DBFNewton([nn.Parameter(torch.ones(100, 51))])
    with pytest.raises(ValueError, match="empty parameter list"):
        DBFNewton([])
    with pytest.raises(TypeError, match="did you mean 'alpha'"):
        DBFNewton([a], alhpa=0.9)
    with pytest.raises(AttributeError, match="param_groups"):
        _ = DBFNewton([a]).alpha


def changed_nothing(
    model: nn.Module, optimizer: DBFNewton, step: Callable[[], object], error: type, words: str
) -> None:
    before, belief = values(model), optimizer.belief()
    with pytest.raises(error, match=words):
        step()
    assert all(torch.equal(a, b) for a, b in zip(values(model), before, strict=True))
    assert isinstance(belief, Belief)
    assert all(torch.equal(a, b) for a, b in zip(belief, optimizer.belief() or (), strict=True))


def test_a_refused_step_changes_nothing() -> None:
    model, closure_of = problem()
    optimizer = DBFNewton(model.parameters())
    optimizer.step(closure_of(0))
    closure, eye = closure_of(1), torch.eye(4, dtype=torch.float64)
    calls = 0

    def backward() -> Tensor:
        loss = closure()
        loss.backward()
        return loss

    def breaks() -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError("the data are gone")
        return closure()

    def ends(value: float) -> Callable[[], Tensor]:
        """The loss where the parameters are, and this value wherever else they go."""
        at = values(model)
        return lambda: closure() if all(map(torch.equal, at, values(model))) else closure() + value

    refused: list[tuple[Callable[[], object], type, str]] = [
        (lambda: optimizer.step(), TypeError, "needs a closure"),
        (lambda: optimizer.step(lambda: 1.0), TypeError, "must return the loss"),  # type: ignore[arg-type, return-value]
        (lambda: optimizer.step(backward), RuntimeError, r"without calling backward\(\)"),
        (lambda: optimizer.step(breaks), OSError, "gone"),
        (lambda: optimizer.step(lambda: closure() * float("nan")), ValueError, "gradient is not finite"),
        (lambda: optimizer.step(lambda: closure() + float("nan")), ValueError, "batch loss is nan"),
        (
            lambda: optimizer.step(ends(float("nan"))),
            ValueError,
            "loss is nan after the shortest step, of length 0.0625",
        ),
        (lambda: optimizer.step(ends(float("inf"))), ValueError, "batch loss is inf after the shortest step"),
        (lambda: optimizer.step(closure, hessian=-eye), ValueError, "not positive definite .*; add damping"),
        (lambda: optimizer.step(closure, hessian=eye[:3, :3]), ValueError, r"\(d, d\), got \(4,\) and \(3, 3\)"),
        (lambda: optimizer.step(closure, hessian=eye + eye[[1, 2, 3, 0]]), ValueError, "not symmetric"),
        (lambda: optimizer.step(closure, hessian=eye / 0), ValueError, "Hessian is not finite"),
    ]
    for step, error, words in refused:
        changed_nothing(model, optimizer, step, error, words)


def test_states_that_do_not_fit() -> None:
    model, closure_of = problem()
    optimizer = DBFNewton(model.parameters())
    optimizer.step(closure_of(0))
    with pytest.raises(ValueError, match="state of 'another optimizer'"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="of 4 entries, the parameters have 6"):
        DBFNewton([nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))]).load_state_dict(optimizer.state_dict())
    other = filter_step(None, torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="shape of the mean"):
        filter_step(other, torch.ones(3), torch.eye(3))
