"""Optimisers as lenses: the same trajectories as chains of rules and as torch, on trees, products and circuits."""

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import chain, lenses
from polyak.optim.lenses import Optimiser
from polyak.optim.rules import descend, heavy_ball, subtract, times_lr
from tests.optim.lenses.test_lenses import random, same

LR, GAMMA = 0.05, 0.8
SHAPES = [(3, 2), (4,), ()]


def trajectory(
    optimiser: Optimiser, start: list[Tensor], gradients: list[list[Tensor]], scale: float = 1.0
) -> list[Any]:
    """The parameters that are read out after each step, as nested pairs on the way."""
    wire = optimiser.start(_nested(start))
    went = []
    for grads in gradients:
        wire = optimiser.lens.put(wire, _nested([scale * g for g in grads]))
        went.append(optimiser.lens.get(wire))
    return went


def _nested(values: list[Tensor]) -> Any:
    return (values[0], (values[1], values[2]))


def engine(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], start: list[Tensor], gradients: list[list[Tensor]]
) -> list[Any]:
    """What an optimizer makes of the same gradients."""
    params = [nn.Parameter(p.clone()) for p in start]
    optimizer, went = make(params), []
    for grads in gradients:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        went.append(_nested([p.detach().clone() for p in params]))
    return went


def inputs(steps: int = 12) -> tuple[list[Tensor], list[list[Tensor]]]:
    return random(0, *SHAPES), [random(1 + t, *SHAPES) for t in range(steps)]


def close(a: list[Any], b: list[Any]) -> None:
    for one, other in zip(a, b, strict=True):
        lenses.tree_map(lambda x, y: [torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-15), x][1], one, other)


@pytest.mark.parametrize("execution", ["eager", "batched"])
@pytest.mark.parametrize(
    ("optimiser", "scale", "rules"),
    [
        (lenses.gradient_descent(LR), 1.0, lambda: chain(descend())),
        (lenses.ascent(), -LR, lambda: chain(descend())),
        (lenses.momentum(LR, GAMMA), 1.0, lambda: chain(times_lr(), heavy_ball(), subtract())),
        (lenses.momentum(LR, GAMMA), 1.0, lambda: chain(heavy_ball(), descend())),
        (lenses.ascent_momentum(GAMMA), -LR, lambda: chain(times_lr(), heavy_ball(), subtract())),
        # what Nesterov's lens reads out goes the way of torch's Nesterov momentum
        (lenses.nesterov(GAMMA), -LR, lambda: chain(times_lr(), heavy_ball(nesterov=True), subtract())),
    ],
)
def test_a_lens_goes_the_way_of_a_chain_of_rules(
    optimiser: Optimiser, scale: float, rules: Callable[[], Any], execution: Any
) -> None:
    start, gradients = inputs()
    given = {"lr": LR, "momentum": GAMMA}
    known = {h.name for h in rules().hypers}

    def make(ps: list[nn.Parameter]) -> torch.optim.Optimizer:
        options = {k: v for k, v in given.items() if k in known}
        return polyak.optim.Optimizer(ps, rules(), execution=execution, **options)

    wanted = engine(make, start, gradients)
    close(trajectory(optimiser, start, gradients, scale), wanted)
    # and any optimizer is a lens itself
    close(trajectory(lenses.from_optimizer(make), start, gradients), wanted)


@pytest.mark.parametrize(
    ("optimiser", "make"),
    [
        (lenses.adam(LR, (0.8, 0.95)), lambda ps: torch.optim.Adam(ps, LR, (0.8, 0.95))),
        (lenses.adagrad(LR, 1e-7), lambda ps: torch.optim.Adagrad(ps, LR, eps=1e-7)),
    ],
)
def test_adam_and_adagrad_are_those_of_torch(optimiser: Optimiser, make: Callable[..., Any]) -> None:
    start, gradients = inputs()
    wanted = engine(make, start, gradients)
    for one, other in zip(trajectory(optimiser, start, gradients, -1.0), wanted, strict=True):
        lenses.tree_map(lambda x, y: [torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12), x][1], one, other)


def test_the_product_of_optimisers_is_the_optimiser_of_the_product() -> None:
    p, q, dp, dq = random(0, (3,), (2, 2), (3,), (2, 2))
    one, both = lenses.ascent_momentum(GAMMA), lenses.ascent_momentum(GAMMA) @ lenses.ascent_momentum(GAMMA)
    a, b = one.start((p, q)), both.start((p, q))
    for _ in range(3):
        a, b = one.lens.put(a, (dp, dq)), both.lens.put(b, (dp, dq))
        same(a, b)
        same(one.lens.get(a), both.lens.get(b))
    mixed = lenses.gradient_descent(LR) @ lenses.adam(LR)
    (state, _), _ = mixed.lens.put(mixed.start((p, q)), (dp, dq))
    assert state is None


def test_put_writes_nothing() -> None:
    start, gradients = inputs(2)
    for optimiser in (
        lenses.ascent_momentum(),
        lenses.adam(),
        lenses.adagrad(),
        lenses.from_optimizer(lambda ps: polyak.optim.Optimizer(ps, chain(heavy_ball(), descend()), lr=LR)),
    ):
        wire = optimiser.lens.put(optimiser.start(_nested(start)), _nested(gradients[0]))
        kept = copy.deepcopy(wire)
        first, second = (optimiser.lens.put(wire, _nested(gradients[1])) for _ in range(2))
        same(first[1], second[1])
        same(wire[1], kept[1])


def test_a_learner_is_sgd() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model, p = lenses.from_module(module)
    learner = lenses.Learner(
        model, lenses.ascent_momentum(GAMMA), lenses.squared_error(), lenses.learning_rate(LR)
    )  # fmt: skip
    wire = learner.start(p)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=GAMMA)
    for t in range(100):
        x, y = random(t, (3,), (2,))
        wire = learner.step(y, wire, x)
        optimizer.zero_grad()
        (0.5 * (module(x) - y).square().sum()).backward()
        optimizer.step()
    for ours, theirs in zip(wire[1], module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)
    same(learner.predict(wire, x), model.lens.get((wire[1], x)))


def test_deep_dreaming_changes_the_input() -> None:
    """The change on the input wire, an optimiser on it, the parameters left as they are."""
    w, x, y = torch.eye(2, dtype=torch.float64), *random(3, (2,), (2,))
    learner = lenses.Learner(lenses.linear(), lenses.ascent(), lenses.squared_error(), lenses.learning_rate(0.2))
    wire, dream = learner.start(w), lenses.ascent_momentum(0.5)
    state = dream.start(x)
    for _ in range(100):
        state = dream.lens.put(state, learner.change(y, wire, dream.lens.get(state))[1])
    torch.testing.assert_close(state[1], y, rtol=0, atol=1e-9)


def test_losses_and_caps() -> None:
    y, guess = torch.tensor([0.0, 1.0], dtype=torch.float64), random(0, (2,))[0]
    entropy = lenses.cross_entropy().lens
    wanted = torch.nn.functional.cross_entropy(guess, torch.tensor(1))
    torch.testing.assert_close(entropy.get((y, guess)), wanted)
    torch.testing.assert_close(entropy.put((y, guess), torch.tensor(2.0).double())[1], 2 * (guess.softmax(0) - y))
    loss = torch.tensor(3.0)
    assert float(lenses.learning_rate(0.5).put(loss, None)) == -0.5
    assert float(lenses.learning_rate(0.5, times_loss=True).put(loss, None)) == -1.5
    assert lenses.learning_rate(0.5).get(loss) is None


def test_boolean_circuits_learn_by_the_same_definition() -> None:
    """A table of bits, learned exactly in one pass: changes are added modulo 2."""

    def put(wire: Any, change: Tensor) -> Any:
        table, x = wire
        return torch.nn.functional.one_hot(x, len(table)) * change, torch.zeros_like(x)

    model = lenses.ParaLens(lenses.Lens(lambda wire: wire[0][wire[1]], put))
    loss = lenses.ParaLens(lenses.Lens(lambda w: w[0] ^ w[1], lambda w, change: (change, change)))
    cap = lenses.Lens(lambda error: None, lambda error, _: error)
    learner = lenses.Learner(model, lenses.exclusive_or(), loss, cap)
    wire = learner.start(torch.zeros(4, dtype=torch.int64))
    truth = torch.tensor([0, 1, 1, 0])  # exclusive or of two inputs
    for x in torch.tensor([3, 1, 0, 2, 2, 1]):
        wire = learner.step(truth[x], wire, x)
    assert torch.equal(wire[1], truth)


def test_as_an_optimizer_of_torch() -> None:
    start, gradients = inputs()
    wanted = trajectory(lenses.nesterov(GAMMA), start, gradients, -LR)
    got = engine(lambda ps: lenses.LensOptimizer(ps, lenses.nesterov(GAMMA), scale=-LR), start, gradients)
    for one, other in zip(got, wanted, strict=True):
        same(one, other)


def test_an_optimizer_of_a_lens_is_resumed_bit_for_bit() -> None:
    def made(model: nn.Module) -> lenses.LensOptimizer:
        return lenses.LensOptimizer(model.parameters(), lenses.nesterov(GAMMA), scale=-LR)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, times: range) -> None:
        for t in times:
            optimizer.zero_grad()
            optimizer.step(lambda t=t: _backward(model, t))

    def _backward(model: nn.Module, t: int) -> float:
        loss = model(random(t, (5, 3))[0]).square().mean()
        loss.backward()
        return float(loss.detach())

    whole, part, other = (nn.Linear(3, 2).double() for _ in range(3))
    part.load_state_dict(whole.state_dict())
    train(whole, made(whole), range(8))
    optimizer = made(part)
    train(part, optimizer, range(4))
    buffer = io.BytesIO()
    torch.save({"model": part.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed = made(other)
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), whole.parameters(), strict=True))
    copied = copy.deepcopy(resumed)
    assert copied.param_groups[0]["scale"] == -LR


STEPPED: list[Any] = [
    lenses.ascent_momentum(GAMMA),
    lenses.nesterov(GAMMA),
    lenses.gradient_descent(0.1),
    lenses.adam(0.1),
    lenses.from_optimizer(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
    functools.partial(lenses.adam, betas=(0.8, 0.9)),
    lenses.adagrad,
]


def stepped(optimiser: Any, *, steps: int = 3, **options: Any) -> tuple[nn.Parameter, lenses.LensOptimizer]:
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = lenses.LensOptimizer([p], optimiser, **options)
    run(p, optimizer, steps)
    return p, optimizer


def run(p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        p.grad = 2 * p.detach()
        optimizer.step()


@pytest.mark.parametrize("optimiser", STEPPED)
def test_it_is_copied_and_pickled_between_steps(optimiser: Any) -> None:
    p, optimizer = stepped(optimiser, scale=-0.1)
    twins = [copy.deepcopy((p, optimizer)), pickle.loads(pickle.dumps((p, optimizer)))]
    run(p, optimizer, 3)
    for q, other in twins:
        assert other.param_groups[0]["params"][0] is q
        run(q, other, 3)
        assert torch.equal(p, q)


def test_products_are_pickled_and_lambdas_are_not() -> None:
    both = pickle.loads(pickle.dumps(lenses.momentum(LR) @ lenses.adam(LR)))
    p, q, dp, dq = random(0, (3,), (2,), (3,), (2,))
    same(both.lens.get(both.lens.put(both.start((p, q)), (dp, dq)))[0], p - LR * dp)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(Optimiser(lenses.Lens(lambda w: w[1], lambda w, c: w), lambda p: None))


@pytest.mark.parametrize("optimiser", STEPPED)
def test_what_is_done_to_the_weights_between_steps_stays(optimiser: Any) -> None:
    p, optimizer = stepped(optimiser, scale=-0.1)
    before = p.detach().clone()
    with torch.no_grad():
        p[0] = 7.0
    p.grad = None
    optimizer.step()
    undisturbed, other = stepped(optimiser, scale=-0.1)
    undisturbed.grad = None
    other.step()
    # momentum moves on by itself, from where the weight was put
    torch.testing.assert_close(p.detach()[0] - 7.0, undisturbed.detach()[0] - before[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(p.detach()[1:], undisturbed.detach()[1:])


def test_a_lens_that_cannot_follow_says_so() -> None:
    def put(wire: Any, change: Any) -> Any:
        return lenses.tree_map(torch.sub, wire[1], change), wire[1]

    stubborn = Optimiser(lenses.Lens(lambda wire: wire[0], put), lambda p: p)  # the weights are in the state
    p, optimizer = stepped(stubborn)
    with torch.no_grad():
        p.add_(1.0)
    before, wire = p.detach().clone(), optimizer.param_groups[0]["wire"]
    with pytest.raises(RuntimeError, match="LensOptimizer: parameter 0 was changed between steps"):
        optimizer.step()
    assert torch.equal(p, before) and optimizer.param_groups[0]["wire"] is wire


@pytest.mark.parametrize(
    ("optimiser", "fixed", "scale"),
    [
        (lenses.ascent_momentum(GAMMA), lambda lr: (lenses.ascent_momentum(GAMMA), -lr), -1.0),
        (functools.partial(lenses.momentum, gamma=GAMMA), lambda lr: (lenses.momentum(lr, GAMMA), 1.0), 1.0),
        (lenses.adam, lambda lr: (lenses.adam(lr), -1.0), -1.0),
    ],
)
def test_schedulers_drive_the_lr(optimiser: Any, fixed: Any, scale: float) -> None:
    p, optimizer = stepped(optimiser, scale=scale, lr=0.1, steps=0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    wire: Any = None
    value = p.detach().clone()
    for t in range(4):
        lens, factor = fixed(0.1 * 0.5**t)
        wire = lens.lens.put(lens.start(value) if wire is None else wire, factor * 2 * value)
        value = lens.lens.get(wire)
        run(p, optimizer, 1)
        scheduler.step()
        torch.testing.assert_close(p.detach(), value, rtol=1e-12, atol=1e-14)


def test_an_lr_that_a_lens_would_not_feel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lr must be 1 where the lens has its own, got 0\.1; give the function"):
        stepped(lenses.adam(LR), lr=0.1)
    with pytest.raises(ValueError, match=r"LensOptimizer: lr must be in \[0, inf\), got -0\.1"):
        stepped(lenses.ascent(), lr=-0.1)
    p, optimizer = stepped(lenses.adam(LR))
    before = p.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match="lr must be 1 where the lens has its own"):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize(
    ("optimiser", "shape", "words"),
    [
        (lenses.adam(LR), (3,), r"wire has a tuple of 3 where this lens has a tuple of 1"),
        (lenses.gradient_descent(LR), (3,), "wire has NoneType where this lens has a tuple of 1"),
        (lenses.momentum(LR), (2,), r"wire has a tensor of shape \(2,\) where this lens has a tensor of shape \(3,\)"),
    ],
)
def test_a_foreign_wire_is_refused(optimiser: Optimiser, shape: tuple[int, ...], words: str) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(shape))
    optimizer, other = lenses.LensOptimizer([p], lenses.momentum(LR)), lenses.LensOptimizer([q], optimiser)
    for param, one in ((p, optimizer), (q, other)):
        param.grad = torch.ones_like(param)
        one.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(other.state_dict())
    same(optimizer.param_groups[0]["wire"], before["param_groups"][0]["wire"])
    two = lenses.LensOptimizer([{"params": [p]}, {"params": [q]}], lenses.momentum(LR))
    with pytest.raises(ValueError, match="the state_dict has 1 groups, this optimizer has 2"):
        two.load_state_dict(before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lenses.gradient_descent(-1.0), r"lr must be in \[0, inf\), got -1.0"),
        (lambda: lenses.momentum(0.1, 1.0), r"gamma must be in \[0, 1\), got 1.0"),
        (lambda: lenses.ascent_momentum(-0.1), r"gamma must be in \[0, 1\), got -0.1"),
        (lambda: lenses.nesterov(float("nan")), "gamma must be in"),
        (lambda: lenses.adagrad(0.1, -1.0), "delta must be in"),
        (lambda: lenses.adam(0.1, (0.9, 1.0)), r"betas\[1\] must be in"),
        (lambda: lenses.learning_rate(-0.1), "lr must be in"),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_does_not_fit_changes_nothing() -> None:
    p = torch.ones(3)
    with pytest.raises(ValueError, match=r"shape \(3,\), a tensor of shape \(2,\)"):
        lenses.momentum().lens.put(lenses.momentum().start(p), torch.ones(2))
    with pytest.raises(ValueError, match="different structure"):
        lenses.momentum().lens.put((None, p), p)
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(1,\)"):
        lenses.squared_error().lens.get((p, torch.ones(1)))
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    a.grad, b.grad = torch.ones(3), torch.ones(2).to_sparse()
    optimizer = lenses.LensOptimizer([a, b], lenses.momentum())
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
    assert torch.equal(a, torch.ones(3))
    with pytest.raises(ValueError, match=r"LensOptimizer: group 0 of the state_dict lacks \['scale', 'wire'\]"):
        optimizer.load_state_dict(torch.optim.SGD([a, b], lr=0.1).state_dict())
    b.grad = None
    optimizer.step()
    assert torch.equal(b, torch.ones(2))
    assert float(a.detach()[0]) == pytest.approx(0.99)


def test_a_weight_that_is_nan_steps_on() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = lenses.LensOptimizer([p], lenses.nesterov(0.9), scale=-1.0, lr=0.1)
    p.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    optimizer.step()
    assert p.isnan().tolist() == [False, True, False]


def test_weights_that_were_far_away_are_followed_where_they_are_put() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = lenses.LensOptimizer([p], lenses.nesterov(0.9), scale=-1.0, lr=0.1)
    for t in range(3):
        p.grad = torch.full((3,), 1e4 * (t + 1))
        optimizer.step()
        with torch.no_grad():
            p.clamp_(-1, 1)
    assert p.tolist() == [-1.0] * 3


def test_a_state_of_before_a_scheduler_is_loaded() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = lenses.LensOptimizer([p], lenses.nesterov(0.9), scale=-1.0, lr=0.1)
    saved = optimizer.state_dict()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.load_state_dict(saved)


def test_an_lr_that_a_product_of_lenses_would_not_feel_is_refused() -> None:
    product = lenses.adam(lr=0.1) @ lenses.adam(lr=0.1)
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    with pytest.raises(ValueError, match="lr must be 1 where the lens has its own"):
        lenses.LensOptimizer(params, product, scale=-1.0, lr=0.5)
