import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyak.optim.solvers import BORep

A = torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.3, 0.1]]).double()
H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]]).double()
B = torch.tensor([1.0, -2.0, 0.5]).double()


class Quadratic:
    """Lower g = 1/2 y'Hy - y'Ax, so y* = H^-1 A x; upper f = 1/2 |y - B|^2 + 0.05 |x|^2."""

    def __init__(self, **options):
        self.x = nn.Parameter(torch.tensor([3.0, -4.0]).double())
        self.y = nn.Parameter(torch.zeros(3).double())
        self.calls = {"upper": 0, "lower": 0, "cross": 0}
        self.solver = BORep([self.x], [self.y], **options)

    def upper(self):
        self.calls["upper"] += 1
        return 0.5 * (self.y - B).square().sum() + 0.05 * self.x.square().sum()

    def lower(self):
        self.calls["lower"] += 1
        return 0.5 * self.y @ H @ self.y - self.y @ A @ self.x

    def cross(self):
        self.calls["cross"] += 1
        return -2 * self.y @ A @ self.x

    def step(self, *cross):
        return self.solver.step(self.upper, self.lower, *cross)

    @property
    def memories(self):
        state = self.solver.state
        return state[self.x]["exp_avg"], state[self.y]["z"]


def by_hand(steps, lr_outer=0.1, lr_inner=0.2, beta=0.8, nu=0.3, interval=2, inner_steps=3, average=True, scale=1.0):
    x, y = torch.tensor([3.0, -4.0]).double(), torch.zeros(3).double()
    z, m = torch.zeros(3).double(), torch.zeros(2).double()
    for k in range(steps):
        if k % interval == 0:
            iterates = []
            for _ in range(inner_steps):
                y = y - lr_inner * (H @ y - A @ x)
                iterates.append(y)
            y = torch.stack(iterates).mean(0) if average else y
        z = z - nu * (H @ z - (y - B))
        m = beta * m + (1 - beta) * (0.1 * x + scale * A.T @ z)
        x = x - lr_outer * m / m.norm()
    return x, y, m, z


OPTIONS = {"lr_outer": 0.1, "lr_inner": 0.2, "beta": 0.8, "nu": 0.3}


@pytest.mark.parametrize("more", [{}, {"average": False}, {"interval": 3, "inner_steps": 2}, {"interval": 1}])
def test_it_is_its_equations(more):
    problem = Quadratic(**OPTIONS, **more)
    for _ in range(7):
        problem.step()
    found = (problem.x.detach(), problem.y.detach(), *problem.memories)
    for got, want in zip(found, by_hand(7, **more), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_another_loss_for_the_cross_derivative():
    problem = Quadratic(**OPTIONS)
    for _ in range(4):
        problem.step(problem.cross)
    torch.testing.assert_close(problem.x.detach(), by_hand(4, scale=2.0)[0], rtol=1e-10, atol=1e-12)
    assert problem.calls == {"upper": 4, "lower": 2 * 3 + 4, "cross": 4}


def test_it_finds_the_bilevel_minimum():
    problem = Quadratic(lr_outer=0.1, lr_inner=0.5, nu=0.5, inner_steps=5)
    schedule = torch.optim.lr_scheduler.LambdaLR(problem.solver, [lambda t: 0.5 ** (t // 50), lambda t: 1.0])
    for _ in range(400):
        problem.step()
        schedule.step()
    response = torch.linalg.solve(H, A)  # of y* to x
    want = torch.linalg.solve(response.T @ response + 0.1 * torch.eye(2).double(), response.T @ B)
    torch.testing.assert_close(problem.x.detach(), want, rtol=0, atol=5e-3)


def test_every_step_has_the_length_of_the_rate_also_where_norms_overflow_float32():
    x, y = nn.Parameter(torch.tensor([10.0, 20.0])), nn.Parameter(torch.zeros(2))
    solver = BORep([x], [y], lr_outer=0.5, nu=0.1)
    for _ in range(3):
        before = x.detach().clone()
        solver.step(lambda: 1e25 * x.square().sum(), lambda: 0.5 * (y - x).square().sum())
        assert float((x.detach() - before).norm()) == pytest.approx(0.5, rel=1e-4)


def test_without_normalization_it_is_a_plain_average():
    problem = Quadratic(**OPTIONS, normalize=False)
    before = problem.x.detach().clone()
    problem.step()
    torch.testing.assert_close(problem.x.detach(), before - 0.1 * problem.memories[0])


def test_no_gradient_leaves_x():
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    solver = BORep([x], [y])
    solver.step(lambda: 0.0 * x.sum() + 0.0 * y.sum(), lambda: y.square().sum())
    assert torch.equal(x.detach(), torch.ones(2))
    BORep([x], [y], eps=0.0).step(lambda: 0.0 * x.sum() + 0.0 * y.sum(), lambda: y.square().sum())
    assert torch.equal(x.detach(), torch.ones(2))


@given(st.floats(0.01, 1.0), st.integers(1, 6))
def test_an_update_stays_in_its_ball(radius, inner_steps):
    one, whole = (Quadratic(lr_inner=0.4, radius=r, inner_steps=inner_steps, average=False) for r in (radius, math.inf))
    one.step()
    whole.step()
    far = float(whole.y.detach().norm())
    assert float(one.y.detach().norm()) <= radius * (1 + 1e-12)
    if far > radius:
        assert float(one.y.detach().norm()) == pytest.approx(radius)
    elif inner_steps == 1:
        assert torch.equal(one.y, whole.y)


def test_the_ball_is_that_of_all_inner_parameters():
    x, ys = nn.Parameter(torch.ones(1)), [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    solver = BORep([x], ys, lr_inner=1.0, inner_steps=1, radius=5.0)
    solver.step(
        lambda: x.sum() + ys[0].sum(),
        lambda: sum(0.5 * (y - t).square().sum() for y, t in zip(ys, (30.0, 40.0), strict=True)),
    )
    assert [y.item() for y in ys] == pytest.approx([3.0, 4.0])


def test_refinement_comes_once_in_parts_of_halved_rates():
    problem = Quadratic(lr_inner=0.4, refine_steps=7, inner_steps=1, interval=1, average=False)
    y = torch.zeros(3).double()
    for lr in (0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1):
        y = y - lr * (H @ y - A @ problem.x.detach())
    problem.step()
    torch.testing.assert_close(problem.y.detach(), y)
    y = y - 0.4 * (H @ y - A @ problem.x.detach())
    problem.step()
    torch.testing.assert_close(problem.y.detach(), y)


def test_unused_parameters_count_as_zeros():
    x, y = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    extra = nn.Parameter(torch.ones(3))
    solver = BORep([x, nn.Parameter(torch.ones(1))], [y, extra])
    solver.step(lambda: (y - 1).square().sum(), lambda: 0.5 * (y - x).square().sum())
    assert torch.equal(extra.detach(), torch.ones(3))
    assert not torch.equal(x.detach(), torch.ones(2))


def test_gradients_are_neither_read_nor_written():
    problem = Quadratic()
    problem.x.grad, problem.y.grad = torch.full((2,), math.nan).double(), None
    problem.step()
    assert problem.x.grad.isnan().all()
    assert problem.y.grad is None
    assert problem.x.isfinite().all()


def test_resume_bit_for_bit():
    whole, first = Quadratic(**OPTIONS, interval=3), Quadratic(**OPTIONS, interval=3)
    for _ in range(8):
        whole.step()
    for _ in range(4):
        first.step()
    file = io.BytesIO()
    torch.save([first.solver.state_dict(), first.x.data, first.y.data], file)
    file.seek(0)
    state, x, y = torch.load(file, weights_only=True)
    second = Quadratic()
    second.solver.load_state_dict(state)
    second.x.data.copy_(x)
    second.y.data.copy_(y)
    for _ in range(4):
        second.step()
    assert torch.equal(second.x, whole.x)
    assert torch.equal(second.y, whole.y)
    assert all(torch.equal(a, b) for a, b in zip(second.memories, whole.memories, strict=True))
    assert copy.deepcopy(whole.solver).state_dict()["param_groups"] == whole.solver.state_dict()["param_groups"]


def held(problem):
    return copy.deepcopy((problem.solver.state_dict(), problem.x, problem.y))


def same(a, b):
    (one, *ps), (two, *qs) = a, b
    return (
        all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))
        and one["param_groups"] == two["param_groups"]
        and all(torch.equal(v, two["state"][i][k]) for i, s in one["state"].items() for k, v in s.items())
    )


@pytest.mark.parametrize("steps", [0, 2, 3])  # with an update of y and without
@pytest.mark.parametrize(
    ("upper", "lower", "kind", "words"),
    [
        (lambda p: p.x.sum().detach(), None, ValueError, "upper must return a loss, one number with its graph"),
        (lambda p: p.x, None, ValueError, r"upper must return a loss.*got shape \(2,\)"),
        (lambda p: 1.0, None, TypeError, "upper must return a tensor, got float"),
        (lambda p: (p.x * math.nan).sum(), None, RuntimeError, "the gradient of upper is not finite"),
        (lambda p: p.y.sum() * math.inf, None, RuntimeError, "the gradient of upper is not finite"),
        (None, lambda p: (p.y * p.x[0]).sum().detach(), ValueError, "lower must return a loss"),
        (None, lambda p: (p.y**2).sum() * math.nan, RuntimeError, "the gradient of lower is not finite"),
        (None, lambda p: p.y.sum(), ValueError, "lower must be twice differentiable"),
        (None, lambda p: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_a_refused_step_changes_nothing(steps, upper, lower, kind, words):
    problem = Quadratic(**OPTIONS)
    for _ in range(steps):
        problem.step()
    before = held(problem)
    with pytest.raises(kind, match=words):
        problem.solver.step(
            (lambda: upper(problem)) if upper else problem.upper, (lambda: lower(problem)) if lower else problem.lower
        )
    assert same(held(problem), before)


def test_a_hypergradient_that_is_not_finite():
    problem = Quadratic(**OPTIONS)
    problem.step()
    before = held(problem)
    with pytest.raises(RuntimeError, match="the gradient of lower is not finite"):
        problem.step(lambda: problem.lower() * torch.tensor(math.inf))
    assert same(held(problem), before)


def test_nu_too_large_is_told_before_numbers_overflow():
    problem = Quadratic(nu=1.5, lr_outer=1e-3)  # the largest eigenvalue is above 2
    with pytest.raises(RuntimeError, match=r"nu = 1\.5 is too large"):
        for _ in range(200):
            problem.step()
    assert problem.memories[1].abs().max() < 1e9
    fine = Quadratic(nu=0.9, lr_outer=1e-3)
    for _ in range(200):
        fine.step()


@pytest.mark.parametrize(
    ("option", "bad", "kind"),
    [
        *((name, x, ValueError) for name in ("lr_outer", "lr_inner") for x in (-1.0, math.nan, math.inf)),
        *(("beta", x, ValueError) for x in (-0.1, 1.0)),
        *(("nu", x, ValueError) for x in (0.0, -1.0, math.inf)),
        *((name, 0, ValueError) for name in ("interval", "inner_steps")),
        *((name, 1.5, TypeError) for name in ("interval", "inner_steps", "refine_steps")),
        ("refine_steps", -1, ValueError),
        *(("radius", x, ValueError) for x in (0.0, -1.0, math.nan)),
        ("eps", -1.0, ValueError),
        ("normalize", "yes", ValueError),
        ("average", None, ValueError),
    ],
)
def test_arguments_out_of_range(option, bad, kind):
    with pytest.raises(kind, match=f"BORep: {option}"):
        Quadratic(**{option: bad})


def test_parameters_that_are_refused():
    x, y = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    frozen, whole = nn.Parameter(torch.ones(1), requires_grad=False), torch.ones(1, dtype=torch.int64)
    for outer, inner, kind, words in (
        ([], [y], ValueError, "outer must hold at least one"),
        ([x], [], ValueError, "inner must hold at least one"),
        ([x], ["y"], TypeError, r"inner\[0\] must be a parameter, got str"),
        ([x], [y, frozen], ValueError, r"inner\[1\] must be real, floating and require"),
        ([whole], [y], ValueError, r"outer\[0\] must be real, floating and require"),
        ([x], [x], ValueError, "more than one parameter group"),
    ):
        with pytest.raises(kind, match=words):
            BORep(outer, inner)
    solver = BORep([x], [y])
    with pytest.raises(ValueError, match="takes no other"):
        solver.add_param_group({"params": [frozen]})
    with pytest.raises(AttributeError, match=r"optimizer\.param_groups"):
        _ = solver.nu
    with pytest.raises(TypeError, match="BORep has no argument 'lr'"):
        BORep([x], [y], lr=1.0)


def test_named_parameters_keep_their_names():
    a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    solver = BORep(a.named_parameters(), b.named_parameters())
    assert solver.param_groups[0]["param_names"] == ["weight", "bias"]
    assert [group["role"] for group in solver.param_groups] == ["outer", "inner"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("state"), r"this one lacks \['state'\]"),
        (lambda s: s["param_groups"].pop(), "has 1 groups, this optimizer has 2"),
        (
            lambda s: s["param_groups"].reverse(),
            r"group 0 of the state_dict lacks \['beta', 'eps', 'normalize', 'step'\]",
        ),
        (lambda s: s["param_groups"][0].pop("beta"), r"group 0 of the state_dict lacks \['beta'\]"),
        (lambda s: s["state"].clear(), r"parameter 0 must have \['exp_avg'\] in the state_dict, it has \[\]"),
        (lambda s: s["state"][1].update(w=0), r"parameter 1 must have \['z'\] in the state_dict, it has \['w', 'z'\]"),
        (lambda s: s["state"][1].update(z=torch.ones(2)), r"z of parameter 1 has shape \(2,\) .*expected \(3,\)"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(spoil, words):
    problem = Quadratic()
    problem.step()
    state, before = copy.deepcopy(problem.solver.state_dict()), held(problem)
    spoil(state)
    with pytest.raises(ValueError, match=f"BORep: .*{words}") as found:
        problem.solver.load_state_dict(state)
    assert "\n" not in str(found.value) and same(before, held(problem))
    with pytest.raises(ValueError, match="BORep: "):
        problem.solver.load_state_dict(torch.optim.SGD([problem.x], lr=0.1).state_dict())
