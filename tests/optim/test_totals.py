"""Steps of chains that sum over all tensors, made in lines of calls: bit for bit those that are made one by one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.optim import LAMB, MoMo, Optimizer, chain, rules
from polyak.optim.engine import calls, kernels, plan, units
from tests.optim.moves import random

SHAPES = ((6, 4), (5,), (3, 2, 2), (30, 20))
STEPS = 6


def uncompiled(form: kernels.Form, small: bool, device: torch.device) -> Callable[[list[Tensor]], Any]:
    """What a compiled kernel does: sizes are those of the weight's array, whatever the shapes of what goes along."""
    function = kernels.function(form)

    def run(given: list[Tensor]) -> Any:
        size, shape = given[0].numel(), given[0].shape
        return function(*(t.view(shape) if t.numel() == size else t for t in given))

    return run


def momo(params: list[nn.Parameter]) -> Optimizer:
    return MoMo(params, lr=0.1, weight_decay=0.1, lb=-100.0, execution="compiled")


def clipped(params: list[nn.Parameter]) -> Optimizer:
    rule = chain(rules.clip_norm(), rules.heavy_ball(), rules.descend())
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
    return Optimizer(groups, rule, lr=0.1, max_grad_norm=0.5, execution="compiled")


def trained(make: Callable[[list[nn.Parameter]], Optimizer], missing: Sequence[int]) -> list[Tensor]:
    """Weights after all steps; at those of ``missing`` a weight has no gradient."""
    params = [nn.Parameter(w) for w in random(0, *SHAPES)]
    optimizer = make(params)
    for t in range(STEPS):
        for p, g in zip(params, random(1 + t, *SHAPES), strict=True):
            p.grad = g
        if t in missing:
            params[1].grad = None
        if t == 4:  # of other strides than the weight
            params[3].grad = random(9, (20, 30))[0].t()
        optimizer.step(loss=1.0 + t)
    return [p.detach() for p in params]


@pytest.mark.parametrize("make", [momo, clipped])
@pytest.mark.parametrize("missing", [(), (2,), (1, 3)])
def test_lines_change_no_bit(monkeypatch: pytest.MonkeyPatch, make: Any, missing: Any) -> None:
    monkeypatch.setattr(units, "compiled", uncompiled)
    runs = []
    own = calls.Talk.run
    monkeypatch.setattr(calls.Talk, "run", lambda self, *given: runs.append(self) or own(self, *given))
    together = trained(make, missing)
    groups = 2 if make is clipped else 1
    assert len(runs) == groups * STEPS - len(missing) - 1
    monkeypatch.setattr(plan, "talk", lambda *given: None)
    one_by_one = trained(make, missing)
    assert len(runs) == groups * STEPS - len(missing) - 1
    assert all(map(torch.equal, together, one_by_one))


@pytest.mark.parametrize("make", [momo, clipped])
def test_lines_are_eager_steps(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setattr(units, "compiled", uncompiled)
    together = trained(make, ())
    monkeypatch.setenv("POLYAK_EXECUTION", "eager")
    torch.testing.assert_close(together, trained(make, ()), rtol=1e-12, atol=1e-12)


def test_what_makes_no_line_is_not_tried_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chains in one group, matrices and vectors, are stepped one by one."""
    monkeypatch.setattr(units, "compiled", uncompiled)
    tried = []
    own = plan.talk
    monkeypatch.setattr(plan, "talk", lambda *given: tried.append(own(*given)) or tried[-1])
    trained(lambda params: LAMB(params, lr=0.1, max_grad_norm=1.0, execution="compiled"), ())
    assert tried == [None]
