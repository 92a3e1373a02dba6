"""Levels with periods: equal to accumulation by hand, resumed in the middle of a chunk, and what is refused."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyak import optim
from polyak.optim.drivers import CMS
from tests.optim.moves import random

BASES: dict[str, Any] = {
    "sgd": lambda groups: optim.SGD(groups, lr=0.1, momentum=0.9),
    "adamw": lambda groups: optim.AdamW(groups, lr=0.1),
    "torch adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
}


class Refusing:
    """A hook that refuses steps while it is told to."""

    now = False

    def __call__(self, *_: Any) -> None:
        if self.now:
            raise RuntimeError("not now")


def same(a: Any, b: Any) -> bool:
    """Whether two states hold the same."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def weights(count: int = 3) -> list[nn.Parameter]:
    return [nn.Parameter(w) for w in random(0, *[(3, 2)] * count)]


def levels(make: Any, params: list[nn.Parameter], periods: list[int], **options: Any) -> CMS:
    return CMS(make([{"params": [p], "period": c} for p, c in zip(params, periods, strict=True)]), **options)


def feed(params: list[nn.Parameter], t: int) -> list[Tensor]:
    grads = random(100 + t, *[tuple(p.shape) for p in params])
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    return grads


@pytest.mark.parametrize("name", BASES)
@settings(deadline=None, max_examples=10)
@given(
    periods=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    steps=st.integers(1, 11),
    mean=st.booleans(),
    flush=st.booleans(),
)
def test_each_level_is_an_optimizer_of_its_own_that_steps_with_sums(
    name: str, periods: list[int], steps: int, mean: bool, flush: bool
) -> None:
    params, twins = weights(), weights()
    driver = levels(BASES[name], params, periods, reduction="mean" if mean else "sum")
    alone, chunks = [BASES[name]([w]) for w in twins], [[] for _ in twins]
    for t in range(steps):
        grads = feed(params, t)
        driver.step()
        for w, optimizer, chunk, g, period in zip(twins, alone, chunks, grads, periods, strict=True):
            chunk.append(g)
            if len(chunk) == period or (flush and t == steps - 1):
                w.grad = sum(chunk) / (len(chunk) if mean else 1)
                optimizer.step()
                chunk.clear()
    if flush:
        driver.flush()
    for p, w in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), w.detach(), rtol=1e-12, atol=1e-12)


def test_period_one_is_the_optimizer_itself_and_holds_nothing() -> None:
    params, twins = weights(), weights()
    driver, optimizer = CMS(BASES["adamw"](params), 1), BASES["adamw"](twins)
    for t in range(4):
        feed(params, t)
        feed(twins, t)
        driver.step()
        optimizer.step()
    assert all(map(torch.equal, params, twins))
    assert driver.state_dict()["sums"] == {}


def test_the_number_of_steps_of_a_level_and_what_lies_still_between() -> None:
    params = weights()
    driver = levels(BASES["adamw"], params, [1, 3, 8])
    for t in range(1, 9):
        before = [p.detach().clone() for p in params]
        feed(params, t)
        driver.step()
        moved = [not torch.equal(a, p) for a, p in zip(before, params, strict=True)]
        assert moved == [True, t % 3 == 0, t % 8 == 0]
        assert all(p.grad is None for p in params[1:])
    assert [float(driver.optimizer.state[p]["step"]) for p in params] == [8, 2, 1]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_resumed_in_the_middle_of_a_chunk_bit_for_bit(name: str, cut: int) -> None:
    params = weights()
    driver = levels(BASES[name], params, [1, 3, 4])
    for t in range(cut):
        feed(params, t)
        driver.step()
    file = io.BytesIO()
    torch.save((params, driver.state_dict()), file)
    file.seek(0)
    twins, state = torch.load(file, weights_only=False)
    other = levels(BASES[name], twins, [1, 1, 1])
    other.load_state_dict(state)
    for t in range(cut, 9):
        feed(params, t)
        feed(twins, t)
        driver.step()
        other.step()
    assert all(map(torch.equal, params, twins))


def test_a_missing_gradient_adds_nothing_and_a_chunk_without_any_skips_the_weight() -> None:
    params = weights(2)
    driver = levels(BASES["adamw"], params, [2, 2])
    for t in range(2):
        grads = feed(params, t)
        params[1].grad = None
        if t == 0:
            kept = grads[0]
        else:
            params[0].grad = None
        driver.step()
    assert params[1] not in driver.optimizer.state
    torch.testing.assert_close(driver.optimizer.state[params[0]]["exp_avg"], 0.1 * kept)


def test_closure_options_and_a_scaler() -> None:
    (p,) = weights(1)
    driver = CMS(optim.SGD([p], lr=0.1), 2)
    assert driver.step(lambda: p.square().sum().backward() or 3.0) == 3.0
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = p.detach().clone()
    driver.zero_grad()
    scaler.scale(p.sum()).backward()
    scaler.step(driver)
    scaler.update()
    torch.testing.assert_close(p.detach(), before - 0.1 * (2 * before + 1))
    scaler.scale(p.sum() * torch.inf).backward()
    scaler.step(driver)
    assert driver.state_dict()["sums"] == {}


def test_sums_of_half_precision_gradients_are_kept_in_float32() -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    driver = CMS(optim.SGD([p], lr=1.0), 257)
    for _ in range(257):
        p.grad = torch.ones_like(p)
        driver.step()
    assert torch.equal(p.float(), torch.full((2,), -256.0))


def test_a_refused_step_changes_nothing_and_can_be_made_again() -> None:
    params, twins = weights(), weights()
    driver, plain = levels(BASES["adamw"], params, [1, 2, 3]), levels(BASES["adamw"], twins, [1, 2, 3])
    driver.optimizer.register_step_pre_hook(refusing := Refusing())
    for t in range(6):
        feed(params, t)
        feed(twins, t)
        before, grads = copy.deepcopy(driver.state_dict()), [p.grad.clone() for p in params]  # type: ignore[union-attr]
        refusing.now = True
        with pytest.raises(RuntimeError, match="not now"):
            driver.step()
        refusing.now = False
        assert all(map(torch.equal, [p.grad for p in params], grads))
        assert same(driver.state_dict(), before)
        driver.step()
        plain.step()
        assert all(map(torch.equal, params, twins))


def test_a_refused_flush_changes_nothing() -> None:
    (p,) = weights(1)
    driver = CMS(optim.SGD([p], lr=0.1, check_finite=True), 3)
    before = p.detach().clone()
    for _ in range(2):
        p.grad = torch.full_like(p, 1e308)
        driver.step()
    with pytest.raises(RuntimeError, match="finite"):
        driver.flush()
    assert torch.equal(p, before) and driver.param_groups[0]["steps_held"] == 2
    assert driver.state_dict()["sums"][0].isinf().all()


def test_a_period_that_shrinks_steps_with_what_is_held() -> None:
    (p,) = weights(1)
    driver = CMS(optim.SGD([p], lr=1.0), 3, reduction="mean")
    before = p.detach().clone()
    p.grad = torch.ones_like(p)
    driver.step()
    driver.param_groups[0]["period"] = 1
    p.grad = torch.full_like(p, 3.0)
    driver.step()
    torch.testing.assert_close(p.detach(), before - 2.0)
    assert driver.state_dict()["sums"] == {}


@pytest.mark.parametrize("period", [0, -3])
def test_a_period_below_one(period: int) -> None:
    with pytest.raises(ValueError, match=rf"CMS: the period of group 1 must be in \[1, inf\), got {period}"):
        levels(BASES["sgd"], weights(2), [1, period])
    with pytest.raises(ValueError, match=r"the period of group 0 must be in \[1, inf\)"):
        CMS(BASES["sgd"](weights()), period)


@pytest.mark.parametrize("period", [1.5, "2", True])
def test_a_period_of_another_kind(period: Any) -> None:
    with pytest.raises(TypeError, match=r"CMS: the period of group 0 must be an? (integer|number) in \[1, inf\), got"):
        CMS(BASES["sgd"](weights()), [period])


def test_groups_without_a_period_and_other_mistakes() -> None:
    optimizer = BASES["sgd"](weights())
    with pytest.raises(ValueError, match="CMS: group 0 has no period"):
        CMS(optimizer)
    with pytest.raises(ValueError, match="CMS: periods has 2 numbers for 1 groups"):
        CMS(optimizer, [1, 2])
    with pytest.raises(ValueError, match=r"CMS: reduction must be one of \['sum', 'mean'\], got 'max'"):
        CMS(optimizer, 2, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"CMS: optimizer must be a torch\.optim\.Optimizer"):
        CMS(weights(), 2)  # type: ignore[arg-type]
    assert "period" not in optimizer.param_groups[0]
    driver = CMS(optimizer, 2)
    optimizer.add_param_group({"params": weights(1)})
    with pytest.raises(ValueError, match="CMS: group 1 has no period"):
        driver.step()


def test_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="CMS: a sparse gradient cannot be held"):
        CMS(torch.optim.SGD(table.parameters(), lr=0.1), 2).step()


def test_states_that_do_not_fit_change_nothing() -> None:
    driver = levels(BASES["sgd"], weights(2), [2, 3])
    feed([p for g in driver.param_groups for p in g["params"]], 0)
    driver.step()
    held = [s.clone() for s in driver.state_dict()["sums"].values()]
    with pytest.raises(ValueError, match="a state_dict has 'optimizer' and 'sums'"):
        driver.load_state_dict(driver.optimizer.state_dict())
    with pytest.raises(ValueError, match=r"sum of parameter 1 has shape \(7,\)"):
        driver.load_state_dict({"optimizer": driver.optimizer.state_dict(), "sums": {1: torch.zeros(7)}})
    assert all(map(torch.equal, held, driver.state_dict()["sums"].values()))
