"""Memories shared by all tensors, what follows from sums over all of them, and the loss of a step."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import AdamW, Context, Flow, MoMo, MoMoAdam, Optimizer, Rule, Shared, chain, factory, rules, switch

MODES = ("eager", "batched", pytest.param("compiled", marks=pytest.mark.slow))
SHAPES = ((6, 4), (5,), (150, 130))
NAN = float("nan")


def count(sums: tuple[Tensor, ...], s: Any, c: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Told: the step size. Kept: how many steps there were, and the sum of what the first group is told."""
    size = c.lr * c.loss / (sums[0] * (1 + s.steps))
    return (size, s.steps), {"steps": s.steps + 1, "sizes": s.sizes + c.lead.lr}


@factory
def by_count() -> Rule:
    """A step size of ``lr * loss / (|g|^2 * t)``, over all tensors."""

    def scalars(h: Any, t: int) -> dict[str, Any]:
        return {"lr": h["lr"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        size, before = c.total(x.u * x.u, then=count)
        c.note("size", size)
        c.note("before", before + 0 * s.steps)
        return x.but(w=x.w - size.to(x.u.dtype) * x.u), {}

    shared = (Shared("steps", "steps so far"), Shared("sizes", "sum of lr", 10.0))
    known = rules.descend().hypers
    return Rule("by_count", update, scalars, hypers=known, writes="step", inputs=("loss",), shared=shared)


def made(execution: Any = "eager", groups: int = 2) -> tuple[Optimizer, list[nn.Parameter]]:
    source = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(s, generator=source, dtype=torch.float64)) for s in SHAPES]
    split = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}][:groups]
    return Optimizer(split, chain(by_count()), lr=0.25, execution=execution), params


def give(params: list[nn.Parameter], t: int) -> None:
    source = torch.Generator().manual_seed(10 + t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source, dtype=torch.float64)


def shared_of(optimizer: Optimizer) -> list[list[float]]:
    return [[float(group["steps"]), float(group["sizes"])] for group in optimizer.param_groups]


@pytest.mark.parametrize("execution", MODES)
def test_one_answer_for_all_tensors_and_groups(execution: Any) -> None:
    optimizer, params = made(execution)
    wanted = [p.detach().clone() for p in params]
    for t in range(3):
        give(params, t)
        square = sum(float(p.grad.square().sum()) for p in params)
        figures = optimizer.diagnostics(loss=2.0)
        assert shared_of(optimizer) == [[t, 10 + t / 2]] * 2, "diagnostics write nothing"
        optimizer.step(loss=2.0)
        for i, (p, w) in enumerate(zip(params, wanted, strict=True)):
            size = (0.25 if i else 0.5) * 2.0 / (square * (1 + t))
            w -= size * p.grad
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-14)
            assert figures[f"parameter {max(i - 1, 0)} of group {min(i, 1)}"]["size"] == pytest.approx(size)
        assert shared_of(optimizer) == [[t + 1, 10 + (t + 1) / 2]] * 2


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_shared_memories_are_copied_and_saved(how: str) -> None:
    optimizer, params = made()
    for t in range(3):
        give(params, t)
        optimizer.step(loss=1.0)
    if how == "state_dict":
        twin, theirs = made()
        for p, q in zip(params, theirs, strict=True):
            q.data.copy_(p.data)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        both = (optimizer, params)
        twin, theirs = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    give(params, 3)
    optimizer.step(loss=1.0)
    assert shared_of(twin) == [[3.0, 11.5]] * 2, "the copy shares memory"
    give(theirs, 3)
    twin.step(loss=1.0)
    assert all(torch.equal(p, q) for p, q in zip(params, theirs, strict=True))
    assert shared_of(twin) == shared_of(optimizer)


def test_a_group_added_later_takes_over_the_present_values() -> None:
    optimizer, params = made(groups=1)
    give(params[:1], 0)
    optimizer.step(loss=1.0)
    optimizer.add_param_group({"params": params[1:]})
    assert shared_of(optimizer) == [[1, 10.5]] * 2
    with pytest.raises(ValueError, match="steps of a group must be one number"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "steps": torch.ones(2)})
    assert len(optimizer.param_groups) == 2


def test_a_state_without_a_shared_memory_is_refused() -> None:
    optimizer, params = made()
    give(params, 0)
    optimizer.step(loss=1.0)
    for spoil, match in (
        (lambda group: group.pop("sizes"), "group 1: the state_dict lacks 'sizes'"),
        (lambda group: group.update(sizes="many"), "sizes of a group must be one number, got 'many'"),
    ):
        saved = copy.deepcopy(optimizer.state_dict())
        spoil(saved["param_groups"][1])
        before = optimizer.param_groups[0]["sizes"]
        with pytest.raises(ValueError, match=match):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["sizes"] is before


def test_a_request_for_state_changes_no_shared_memory() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    net = nn.Linear(3, 2)
    optimizer = MoMo(net.parameters())
    saved = get_optimizer_state_dict(net, optimizer)
    assert float(saved["param_groups"][0]["model_steps"]) == 0 and float(optimizer.param_groups[0]["model_steps"]) == 0
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step(loss=3.0)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer))
    other = MoMo(net.parameters())
    set_optimizer_state_dict(net, other, saved)
    assert [float(other.param_groups[0][k]) for k in ("model_steps", "loss_avg")] == [1.0, 3.0]


def test_a_switch_keeps_what_both_share() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer: Optimizer = MoMo([w], bias_correction=True)
    w.grad = torch.ones(3)
    optimizer.step(loss=5.0)
    optimizer = switch(optimizer, "momo_adam")
    assert [float(optimizer.param_groups[0][k]) for k in ("model_steps", "loss_avg")] == [1.0, pytest.approx(0.5)]
    optimizer = switch(optimizer, "adamw")
    assert "loss_avg" not in optimizer.param_groups[0]
    optimizer = switch(optimizer, "momo_adam")
    assert float(optimizer.param_groups[0]["model_steps"]) == 0


def test_names_that_would_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="both keep a memory named 'steps'"):
        chain(by_count(), by_count())

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x, {}

    with pytest.raises(ValueError, match="'lr' of other has the name of an option"):
        chain(Rule("other", update, shared=(Shared("lr"),)), rules.descend())
    with pytest.raises(ValueError, match="without memory"):
        rules.adam().at("exp_avg", Rule("other", update, shared=(Shared("x"),)))

    def telling(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        c.total(x.u, then=count)
        return x, {}

    wrong = Rule("wrong", telling, lambda h, t: {"lr": 1.0}, inputs=("loss",), shared=(Shared("steps"),))
    with pytest.raises(AttributeError, match="no memory 'sizes'"):
        wrong_one = Optimizer([nn.Parameter(torch.ones(2))], chain(wrong, rules.descend()))
        wrong_one.explain()


METHODS = (MoMo, MoMoAdam)


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (None, RuntimeError, r"reads the loss: call step\(loss=loss\), or step\(closure\), or set_loss"),
        (NAN, RuntimeError, "the loss is nan; nothing was changed"),
        (float("inf"), RuntimeError, "the loss is inf"),
        (torch.tensor(NAN), RuntimeError, "the loss is nan"),
        (torch.ones(3), ValueError, r"the loss must be one number, got shape \(3,\)"),
        ([1.0, 2.0], ValueError, "one number"),
        ("small", TypeError, "the loss must be a number, got 'small'"),
        (torch.ones((), dtype=torch.complex64), TypeError, "must be a real number"),
    ],
)
def test_a_bad_loss_changes_nothing(cls: Any, loss: Any, error: type[Exception], match: str) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = cls([w])
    w.grad = torch.ones(3)
    optimizer.step(loss=4.0)
    before = copy.deepcopy((w.detach(), optimizer.state_dict()))
    with pytest.raises(error, match=match):
        optimizer.step(loss=loss)
    assert torch.equal(w, before[0])
    now = optimizer.state_dict()
    assert now["param_groups"] == before[1]["param_groups"]
    assert all(torch.equal(v, before[1]["state"][0][k]) for k, v in now["state"][0].items())


def test_a_loss_given_beforehand() -> None:
    results = []
    for ahead in (True, False):
        w = nn.Parameter(torch.ones(3))
        optimizer = MoMo([w], lr=10.0)
        w.grad = torch.ones(3)
        if ahead:
            optimizer.set_loss(torch.tensor(0.25, requires_grad=True))
            optimizer.step()
        else:
            optimizer.step(lambda: 0.25)
        results.append(w.detach())
    assert torch.equal(*results) and not torch.equal(results[0], torch.ones(3))
    with pytest.raises(RuntimeError, match="reads the loss"):
        optimizer.step()


def test_two_losses_are_refused() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = MoMo([w])
    w.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"a closure or a loss, not both"):
        optimizer.step(lambda: 1.0, loss=1.0)
    with pytest.raises(ValueError, match="one number"):
        optimizer.set_loss(torch.ones(2))
    optimizer.set_loss(None)
    optimizer.step(loss=1.0)
    AdamW([w]).set_loss(0.5)


def test_a_loss_that_was_set_is_for_one_step() -> None:
    """One that is given to the step counts before it, as after a step that a GradScaler skipped."""
    w = nn.Parameter(torch.ones(3))
    optimizer = MoMo([w])
    w.grad = torch.ones(3)
    optimizer.set_loss(1.0)
    optimizer.step(loss=2.0)
    assert float(optimizer.param_groups[0]["loss_avg"]) == 2.0
    optimizer.set_loss(torch.tensor(torch.inf))
    with pytest.raises(RuntimeError, match="the loss is inf"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="reads the loss"):
        optimizer.step()


def test_momo_of_several_groups_has_one_bound_and_one_step_size_each() -> None:
    """Groups of other lr and decay have other caps; averages and bound are the same everywhere."""
    params = [nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64)) for _ in range(2)]
    optimizer = MoMo([{"params": [params[0]], "lr": 1e-3}, {"params": [params[1]], "lr": 1e3}], lb=1.0)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=3.0)
    assert params[0][0].item() == pytest.approx(2 - 1e-3)
    assert params[1][0].item() == pytest.approx(2 - (3.0 - 1.0) / 8)  # (f - lb) / |g|^2, over both
    for option in ({"beta": 0.5}, {"lb": 0.0}, {"use_fstar": True}):
        with pytest.raises(ValueError, match=f"MoMo: {next(iter(option))} must be the same in all groups"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **option})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("option", [{"lr": -1.0}, {"beta": 1.0}, {"weight_decay": -0.1}, {"lb": NAN}])
def test_momo_out_of_range(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        MoMo([nn.Parameter(torch.ones(2))], **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", METHODS)
def test_momo_below_its_bound_stands_still(cls: Any) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = cls([w], lb=10.0)
    w.grad = torch.zeros(3)
    optimizer.step(loss=10.0)  # no gradient, no step
    w.grad = torch.full((3,), 1e-3)
    optimizer.step(loss=1.0)
    assert bool((w == 1).all())
