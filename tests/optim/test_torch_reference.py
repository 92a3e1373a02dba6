"""SGD, Adam and AdamW are torch.optim's: the same numbers, and checkpoints that load either way."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

import polyak.optim

MODES = ("eager", "batched", "compiled")
PAIRS = {
    "sgd": (polyak.optim.SGD, torch.optim.SGD),
    "adam": (polyak.optim.Adam, torch.optim.Adam),
    "adamw": (polyak.optim.AdamW, torch.optim.AdamW),
}
SHAPES = ((150, 120), (4, 3, 2), (17,), (33,), ())


def grid(**axes: tuple) -> list[dict]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


SGD_OPTIONS = grid(momentum=(0.0, 0.9), dampening=(0.0, 0.3), weight_decay=(0.0, 0.1), maximize=(False, True))
SGD_OPTIONS += grid(momentum=(0.9,), nesterov=(True,), weight_decay=(0.0, 0.1), maximize=(False, True))
ADAM_OPTIONS = grid(amsgrad=(False, True), weight_decay=(0.0, 0.1), maximize=(False, True))
ADAM_OPTIONS += [{"betas": (0.0, 0.5), "eps": 1e-3}]
GRID = [("sgd", o) for o in SGD_OPTIONS] + [(name, o) for name in ("adam", "adamw") for o in ADAM_OPTIONS]
# Options make kernels of their own, each of which takes seconds: compiled, the quick part has one set of them.
RICH = ("adamw", {"amsgrad": False, "weight_decay": 0.1, "maximize": False})
CASES = [(case, mode) for mode in ("eager", "batched") for case in GRID]
CASES += [(RICH, "compiled")]
COMPILED = [c for c in GRID if c != RICH and not c[1].get("maximize")]
COMPILED += [(name, {"maximize": True}) for name in PAIRS]
CASES += [pytest.param(case, "compiled", marks=pytest.mark.slow) for case in COMPILED]


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=source, dtype=torch.float64)) for s in SHAPES]


def give_gradients(params: list[torch.nn.Parameter], t: int) -> None:
    """Random gradients; from the third step on one is missing now and then."""
    source = torch.Generator().manual_seed(100 + t)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, generator=source, dtype=torch.float64)
        p.grad = None if t > 2 and (t + i) % 4 == 0 else g


def train(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], start: int, stop: int) -> None:
    for t in range(start, stop):
        give_gradients(params, t)
        optimizer.step()


def check_equal(ours: list[torch.nn.Parameter], theirs: list[torch.nn.Parameter]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-13)


def described(case: tuple[str, dict]) -> str:
    return case[0] + "-" + "-".join(f"{k}={v}" for k, v in case[1].items() if v not in (False, 0.0))


@pytest.mark.parametrize(("case", "mode"), CASES, ids=lambda x: x if isinstance(x, str) else described(x))
def test_steps(case: tuple[str, dict], mode: str) -> None:
    name, options = case
    ours, theirs = PAIRS[name]
    mine, reference = weights(), weights()
    train(ours(mine, lr=0.03, **options, execution=mode), mine, 0, 8)
    train(theirs(reference, lr=0.03, foreach=False, **options), reference, 0, 8)
    check_equal(mine, reference)


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(n, m, marks=[pytest.mark.slow] * (m == "compiled" and n != RICH[0])) for n in PAIRS for m in MODES],
)
def test_tensor_lr(name: str, mode: str) -> None:
    """A tensor as lr, changed in place by a scheduler."""
    ours, theirs = PAIRS[name]
    trained = []
    for method, extra in ((ours, {"execution": mode}), (theirs, {"foreach": False})):
        params = weights()
        lr = torch.tensor(0.05, dtype=torch.float64)
        optimizer = method(params, lr=lr, weight_decay=0.1, **extra)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for t in range(6):
            give_gradients(params, t)
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] is lr
        trained.append(params)
    check_equal(*trained)


def moved(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    """Load a copy, as from a file."""
    target.load_state_dict(copy.deepcopy(source.state_dict()))


CHECKPOINTS = [
    ("sgd", {}), ("sgd", {"momentum": 0.9}), ("sgd", {"momentum": 0.9, "dampening": 0.3}),
    ("sgd", {"momentum": 0.9, "nesterov": True}), ("adam", {}), ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("adamw", {}), ("adamw", {"amsgrad": True, "maximize": True}),
]  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS, ids=described)
def test_checkpoint_of_torch_continues_here(case: tuple[str, dict]) -> None:
    name, options = case
    ours, theirs = PAIRS[name]
    reference = weights()
    old = theirs(reference, lr=0.03, **options)
    train(old, reference, 0, 5)
    mine = copy.deepcopy(reference)
    new = ours(mine)  # the options come with the checkpoint
    moved(old, new)
    train(old, reference, 5, 10)
    train(new, mine, 5, 10)
    check_equal(mine, reference)
    assert new.param_groups[0]["lr"] == 0.03 and new.param_groups[0]["method"] == name


@pytest.mark.parametrize("case", CHECKPOINTS, ids=described)
def test_checkpoint_from_here_continues_in_torch(case: tuple[str, dict]) -> None:
    name, options = case
    ours, theirs = PAIRS[name]
    mine = weights()
    old = ours(mine, lr=0.03, **options)
    train(old, mine, 0, 5)
    reference = copy.deepcopy(mine)
    new = theirs(reference, lr=1.0)
    moved(old, new)
    train(old, mine, 5, 10)
    train(new, reference, 5, 10)
    check_equal(mine, reference)


def test_there_and_back_again() -> None:
    params = weights()
    first = polyak.optim.AdamW(params, lr=0.03)
    train(first, params, 0, 3)
    second = torch.optim.AdamW(params)
    moved(first, second)
    third = polyak.optim.AdamW(params)
    moved(second, third)
    for p in params:
        assert set(third.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in first.state[p].items():
            assert torch.equal(third.state[p][key], value) and third.state[p][key].dtype == value.dtype
    assert third.param_groups[0]["lr"] == 0.03


@pytest.mark.parametrize(
    ("saved", "loads", "what"),
    [
        (torch.optim.Adam, polyak.optim.SGD, "betas"),
        (torch.optim.SGD, polyak.optim.AdamW, "momentum"),
        (torch.optim.RMSprop, polyak.optim.AdamW, "alpha"),
        (torch.optim.AdamW, polyak.optim.Adam, "decoupled_weight_decay"),
        (torch.optim.NAdam, polyak.optim.Adam, "momentum_decay"),
    ],
)
def test_other_methods_of_torch_are_refused(saved: type, loads: type, what: str) -> None:
    params = weights()
    options = {"momentum": 0.9} if saved is torch.optim.SGD else {"weight_decay": 0.1}
    old = saved(params, lr=0.03, **options)
    train(old, params, 0, 3)
    new = loads(params)
    with pytest.raises(ValueError, match=what):
        moved(old, new)


def test_sgd_checkpoint_without_buffers() -> None:
    """torch writes ``momentum_buffer: None`` for a parameter that momentum has not reached."""
    params = weights()
    old = torch.optim.SGD(params, lr=0.03, momentum=0.9, dampening=0.3)
    train(old, params, 0, 1)
    state = copy.deepcopy(old.state_dict())
    for values in state["state"].values():
        values["momentum_buffer"] = None
    mine = copy.deepcopy(params)
    new = polyak.optim.SGD(mine, momentum=0.9)
    new.load_state_dict(state)
    old.load_state_dict(copy.deepcopy(state))
    train(old, params, 1, 5)
    train(new, mine, 1, 5)
    check_equal(mine, params)


def test_state_has_the_names_and_kinds_of_torch() -> None:
    """Tools read ``optimizer.state``: 0-d float32 counters on the CPU, moments shaped and strided like the weight."""
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    states: list[dict[str, Tensor]] = []
    for method in PAIRS["adamw"]:
        p = torch.nn.Parameter(weight.clone())
        p.grad = torch.randn(4, 3, 5, 5)
        optimizer = method([p])
        optimizer.step()
        states.append(optimizer.state[p])
    ours, theirs = states
    assert list(ours) == list(theirs) or set(ours) == set(theirs)
    for key, value in theirs.items():
        assert (ours[key].shape, ours[key].dtype, ours[key].device) == (value.shape, value.dtype, value.device), key
