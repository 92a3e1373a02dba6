"""What rules may ask of a whole tensor besides sums, and what tells tensors and steps apart."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import Context, Flow, Optimizer, Rule, Slot, chain, factory, rules
from polyak.optim.engine.context import Question
from polyak.optim.engine.keeping import Keeping
from polyak.optim.engine.kernels import _Once, source
from polyak.optim.engine.member import Member
from polyak.optim.engine.units import form_of
from tests.optim.moves import random

MODES = ["eager", "batched", pytest.param("compiled", marks=pytest.mark.slow)]
SHAPES = [(200, 190), (30, 4), (5,), (1,), ()]


@factory
def by_largest() -> Rule:
    """Divide by the largest entry, and by that of what is asked first."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        top, bottom = c.largest(x.u.abs(), -x.u)
        return x.but(u=x.u / top.to(x.u.dtype) + bottom.to(x.u.dtype)), {}

    return Rule("by_largest", update)


@pytest.mark.parametrize("execution", MODES)
def test_the_largest_entry_of_each_tensor(execution: Any) -> None:
    """Also of one that goes through kernels slice by slice."""
    params = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = Optimizer(params, chain(by_largest(), rules.descend()), lr=1.0, execution=execution)
    for p, g in zip(params, random(3, *SHAPES), strict=True):
        p.grad = g
    optimizer.step()
    for p in params:
        assert p.grad is not None
        torch.testing.assert_close(-p.detach(), p.grad / p.grad.abs().max() - p.grad.min(), rtol=1e-12, atol=1e-14)
    assert Question("a", "largest").is_local


@pytest.mark.parametrize("execution", MODES)
def test_the_salt_tells_tensors_apart_in_all_groups(execution: Any) -> None:
    salted = Rule("salted", lambda x, s, c: (x.but(u=torch.zeros_like(x.u) + c.salt), {}))
    params = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (3, 4), (200, 190), (5,))]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = Optimizer(groups, chain(salted, rules.descend()), lr=1.0, execution=execution)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    salts = [set(p.detach().flatten().tolist()) for p in params]
    assert [len(s) for s in salts] == [1] * 4 and len(set.union(*salts)) == 4


def test_an_average_is_kept_in_fewer_bytes_where_its_slot_says() -> None:
    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x, {"m": s.m + x.u}

    slot = Slot("m", "a sum", "signed", narrow=lambda shape: len(shape) > 1)
    params = [nn.Parameter(torch.zeros(64, 64)), nn.Parameter(torch.zeros(4096))]
    whole = chain(Rule("summed", update, slots=(slot,)), rules.descend())
    optimizer = Optimizer(params, whole, lr=1.0, state_storage="factored")
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert "m_row" in optimizer.state[params[0]] and set(optimizer.state[params[1]]) == {"m"}


def test_a_rule_around_a_rule_has_the_same_name_in_every_process() -> None:
    """Its code on disk is found again: no address of an object is in what it is called."""

    def identity(rule: Rule) -> str | None:
        whole = chain(rule, rules.descend())
        questions = whole.questions({"lr": 0.1, "momentum": 0.9, "DeltaT": 5})
        member = Member(nn.Parameter(torch.zeros(4, 4)), 0, "", whole, questions, Keeping(), 1)
        return source(form_of(member, ((), ()), torch.float32, False), True, torch.device("cpu")).identity

    named = identity(rules.momentum_reset(rules.heavy_ball()))
    assert named is not None and " at 0x" not in named and "momentum_reset" in named and "heavy_ball" in named
    assert named != identity(rules.momentum_reset(rules.heavy_ball(True)))
    own = Rule("own", lambda x, s, c: (x, {"a": s.a}), slots=(Slot("a"),))
    assert identity(rules.momentum_reset(own)) is None


@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_steps_are_the_optimizers_and_not_the_tensors(execution: Any) -> None:
    seen: list[int] = []

    def scalars(h: Any, t: int) -> dict[str, Any]:
        seen.append(h.get("steps", 0))
        return {"k": 1.0}

    counting = Rule("counting", lambda x, s, c: (x.but(u=x.u * c.k), {}), scalars, reads_steps=True)
    p = nn.Parameter(torch.zeros(3))
    optimizer = Optimizer([p], chain(counting, rules.descend()), lr=1.0, execution=execution)
    for t in range(4):
        p.grad = None if t == 1 else torch.ones(3)
        optimizer.step()
    assert optimizer.param_groups[0]["steps"] == 4 and seen[-1] == 3


def in_place(x: Tensor, e: Tensor) -> Tensor:
    s = x.sum().double() * 1e-3
    y = x * s
    s.mul_(2)
    return y + x * s


AT_ONCE = {
    "a number": lambda x, e: x * e,
    "a number of a place": lambda x, e: torch.where(x > 0, e, x),
    "a row": lambda x, e: x * (x.sum(1, keepdim=True).sqrt() + e),
    "a number that is the dtype": lambda x, e: x.type_as(e) + e.expand_as(x),
    "a number between wider ones": lambda x, e: torch.addcmul(x.double().mean(1, keepdim=True), x, e),
    "a number written in place": in_place,
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_is_found_once_while_a_kernel_is_traced_changes_nothing(name: str) -> None:
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    expected = AT_ONCE[name](x, third)
    with _Once([third], [third.float()], torch.float32, stores=True):
        found = AT_ONCE[name](x, third)
    assert found.dtype is expected.dtype
    assert torch.equal(found, expected)
