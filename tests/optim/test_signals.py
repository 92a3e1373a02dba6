"""What a rule may ask and be told: column sums, memories by row and column, resets, the loss, phases."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.memory.averages import ema
from polyak.optim import AdamW, Context, Flow, Hyper, Interval, Optimizer, Rule, Slot, chain, factory, rules

MODES = ("eager", "batched", pytest.param("compiled", marks=pytest.mark.slow))
SHAPES = ((6, 4), (5,), (3, 2, 2, 2), (150, 130), (120, 120))


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def train(optimizer: Optimizer, params: list[nn.Parameter], count: int, **more: Any) -> list[list[Tensor]]:
    """Steps; the gradients of each."""
    out = []
    for t in range(count):
        gradients = drawn(100 + t, *[p.shape for p in params])
        for p, g in zip(params, gradients, strict=True):
            p.grad = g.clone()
        optimizer.step(**more)
        out.append(gradients)
    return out


@factory
def unit_columns() -> Rule:
    """Divide each column of the direction by its length."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=x.u / c.columns(x.u * x.u).sqrt()), {}

    return Rule("unit_columns", update)


@pytest.mark.parametrize("execution", MODES)
def test_column_sums(execution: Any) -> None:
    """Of a tensor seen as (shape[0], rest); a vector is one column."""
    params = [nn.Parameter(torch.zeros_like(w)) for w in drawn(0, *SHAPES)]
    optimizer = Optimizer(params, chain(unit_columns(), rules.descend()), lr=1.0, execution=execution)
    (gradients,) = train(optimizer, params, 1)
    for p, g in zip(params, gradients, strict=True):
        flat = g.reshape(g.shape[0], -1)
        wanted = flat / flat.norm(dim=0, keepdim=True)
        torch.testing.assert_close(-p.detach().reshape(flat.shape), wanted, rtol=1e-12, atol=0)


@factory
def factored_squares() -> Rule:
    """Averages of the squares of rows and of columns, and one number: a memory that is smaller than the weight."""

    def scalars(h: Any, t: int) -> dict[str, Any]:
        return {"rate": 0.1 / (1 - 0.9**t)}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        g2 = x.u * x.u
        row_sums, column_sums = c.rows(g2), c.columns(g2)
        r = ema(s.rows, row_sums.row[0], c.rate)
        k = ema(s.columns, column_sums, c.rate)
        whole = ema(s.whole, row_sums.whole[0], c.rate)
        return x.but(u=x.u * (whole / (r * k)).sqrt()), {"rows": r, "columns": k, "whole": whole}

    slots = (Slot("rows", shape="row"), Slot("columns", shape="column"), Slot("whole", shape="scalar"))
    return Rule("factored_squares", update, scalars, slots, timed=True)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("execution", MODES)
def test_memories_by_row_and_column(execution: Any, storage: Any) -> None:
    starts = drawn(0, *SHAPES)
    params = [nn.Parameter(w.clone()) for w in starts]
    whole = chain(factored_squares(), rules.descend())
    optimizer = Optimizer(params, whole, lr=0.1, execution=execution, state_storage=storage)
    history = train(optimizer, params, 3)
    for i, (p, w) in enumerate(zip(params, starts, strict=True)):
        rows, columns, total = (torch.zeros(n, dtype=torch.float64) for n in (len(w), w.numel() // len(w), ()))
        w = w.reshape(len(w), -1).clone()
        for t, gradients in enumerate(history, start=1):
            g, rate = gradients[i].reshape(w.shape), 0.1 / (1 - 0.9**t)
            rows = rows + rate * (g.square().sum(1) - rows)
            columns = columns + rate * (g.square().sum(0) - columns)
            total = total + rate * (g.square().sum() - total)
            w -= 0.1 * g * (total / torch.outer(rows, columns)).sqrt()
        torch.testing.assert_close(p.detach().reshape(w.shape), w, rtol=1e-10, atol=1e-12)
        state = optimizer.state[p]
        assert [tuple(state[k].shape) for k in ("rows", "columns", "whole")] == [(len(w),), (w.shape[1],), ()]
        torch.testing.assert_close(state["rows"], rows, rtol=1e-10, atol=0)
        torch.testing.assert_close(state["columns"], columns, rtol=1e-10, atol=0)


def test_memories_by_row_and_column_are_saved() -> None:
    params = [nn.Parameter(w) for w in drawn(0, *SHAPES)]
    whole = chain(factored_squares(), rules.descend())
    optimizer = Optimizer(params, whole, lr=0.1)
    train(optimizer, params, 2)
    twins, twin = copy.deepcopy((params, optimizer))
    loaded = Optimizer(twins, whole, lr=0.1)
    loaded.load_state_dict(twin.state_dict())
    train(optimizer, params, 2)
    train(loaded, twins, 2)
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))
    spoilt = copy.deepcopy(optimizer.state_dict())
    spoilt["state"][0]["rows"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"rows has shape \(3,\), expected \(6,\)"):
        loaded.load_state_dict(spoilt)


@factory
def forgetful(period: int) -> Rule:
    """A momentum that begins anew every ``period`` steps: a coefficient is 0 then."""

    def scalars(h: Any, t: int) -> dict[str, Any]:
        return {"keep": 0.0 if t % period == 1 else h["memory"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        m = c.keep * s.momentum + x.u
        return x.but(u=m), {"momentum": m}

    known = (Hyper("memory", 0.9, Interval(0.0, 1.0), "retention"),)
    return Rule("forgetful", update, scalars, (Slot("momentum"),), known, timed=True)


@pytest.mark.parametrize("execution", MODES)
def test_resets(execution: Any) -> None:
    starts = drawn(0, *SHAPES)
    params = [nn.Parameter(w.clone()) for w in starts]
    optimizer = Optimizer(params, chain(forgetful(3), rules.descend()), lr=0.1, memory=0.8, execution=execution)
    history = train(optimizer, params, 7)
    for i, (p, w) in enumerate(zip(params, starts, strict=True)):
        m = torch.zeros_like(w)
        for t, gradients in enumerate(history):
            m = (0.0 if t % 3 == 0 else 0.8) * m + gradients[i]
            w = w - 0.1 * m
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-13)


@factory
def by_loss() -> Rule:
    """Polyak's step size for a minimum of 0: the loss over the squared length of the gradient, of each tensor."""

    def update(x: Flow, s: Any, c: Any) -> tuple[Flow, dict[str, Tensor]]:
        c.note("loss", c.loss)
        return x.but(u=x.u * (c.loss / c.sum(x.u * x.u)).to(x.u.dtype)), {}

    return Rule("by_loss", update, inputs=("loss",))


def reader(*params: nn.Parameter, execution: Any = "eager") -> Optimizer:
    return Optimizer(params, chain(by_loss(), rules.descend()), lr=1.0, execution=execution)


LOSSES = {
    "number": lambda loss: {"loss": loss.item()},
    "tensor": lambda loss: {"loss": loss},
    "float32 of one element": lambda loss: {"loss": loss.detach().float().reshape(1)},
}


@pytest.mark.parametrize("execution", MODES)
@pytest.mark.parametrize("how", [*LOSSES, "closure"])
def test_a_loss_that_a_rule_reads(how: str, execution: Any) -> None:
    """On |w|^2 / 2, Polyak's step halves the weight."""
    w = nn.Parameter(drawn(0, (6, 4))[0])
    start = w.detach().clone()
    optimizer = reader(w, execution=execution)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = w.square().sum() / 2
        loss.backward()
        return loss

    for t in range(1, 4):
        if how == "closure":
            value = optimizer.step(closure)
            assert value.item() == pytest.approx(float(start.square().sum()) / 2 * 0.25 ** (t - 1))
        else:
            optimizer.step(**LOSSES[how](closure()))
        torch.testing.assert_close(w.detach(), start * 0.5**t, rtol=1e-6, atol=0)


def test_a_loss_that_is_missing_is_asked_for() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = reader(w)
    w.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"reads the loss: call step\(loss=loss\), or step\(closure\)"):
        optimizer.step()
    assert bool((w == 1).all()) and not optimizer.state
    AdamW([w]).step(loss=0.5)  # who does not read it takes it all the same


def test_a_request_for_state_has_no_loss() -> None:
    """torch.distributed.checkpoint steps without one."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = nn.Linear(3, 2)
    whole = chain(by_loss(), rules.adam(), rules.descend())
    optimizer = Optimizer(net.parameters(), whole, lr=0.1)
    saved = get_optimizer_state_dict(net, optimizer)
    assert set(saved["state"]["weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert float(saved["state"]["weight"]["step"]) == 0


class Phased(Optimizer):
    """Momentum first, then Adam on the same memory: the group's ``phase`` says which."""

    chains = {
        "first": chain(rules.adam(), rules.cautious(), rules.descend()),
        "second": chain(rules.adam(), rules.descend()),
    }

    def chain_of(self, group: Any) -> Any:
        return self.chains[group.get("phase", "first")]


@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_phases(execution: Any) -> None:
    """Another chain from some step on; memories of the same name and the counter go on."""
    starts = drawn(0, *SHAPES)
    params = [nn.Parameter(w.clone()) for w in starts]
    twins = [nn.Parameter(w.clone()) for w in starts]
    optimizer = Phased(params, Phased.chains["first"], lr=0.1, execution=execution)
    plain = AdamW(twins, lr=0.1, weight_decay=0.0, execution="eager")
    train(optimizer, params, 3)
    train(plain, twins, 3)
    for p, q in zip(params, twins, strict=True):
        assert not torch.equal(p, q)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], plain.state[q]["exp_avg"])
        q.data.copy_(p.data)
    optimizer.param_groups[0]["phase"] = "second"
    train(optimizer, params, 3)
    train(plain, twins, 3)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-13)
        assert float(optimizer.state[p]["step"]) == 6
    assert "cautious" not in optimizer.explain()
