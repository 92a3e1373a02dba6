"""What stands around a step: switching methods, diagnostics, bytes of state, ascent, closures, autocast, explain()."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

import polyak.optim
from polyak.optim import (
    SGD,
    TAM,
    AdamP,
    AdamW,
    Adan,
    CAdamW,
    CAdan,
    Lion,
    Muon,
    Optimizer,
    create,
    switch,
)
from polyak.optim.engine import views

SHAPES = ((40, 30), (4, 3, 3, 3), (17,), (), (0, 2))
LOSS = 0.7  # for those that read one


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(s, dtype=dtype)) for s in SHAPES]


def give_gradients(params: list[nn.Parameter], t: int = 0) -> None:
    source = torch.Generator().manual_seed(t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source, dtype=torch.float64).to(p.dtype)


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], start: int, stop: int) -> None:
    for t in range(start, stop):
        give_gradients(params, t)
        optimizer.step(loss=LOSS)


def everything(params: list[nn.Parameter], optimizer: Optimizer) -> list[Tensor]:
    memories = [v.clone() for p in params for v in optimizer.state.get(p, {}).values()]
    return [*(p.detach().clone() for p in params), *memories]


def unchanged(params: list[nn.Parameter], optimizer: Optimizer, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(everything(params, optimizer), before, strict=True))


def test_switch_keeps_memories_counters_and_options() -> None:
    params = weights()
    old = AdamW(params, lr=0.02, betas=(0.8, 0.99), weight_decay=0.3, execution="eager")
    train(old, params, 0, 3)
    kept = {p: {k: v.clone() for k, v in old.state[p].items()} for p in params}
    new = switch(old, "adan")
    group = new.param_groups[0]
    assert isinstance(new, Adan) and new.execution == "eager"
    kept_options = (group["lr"], group["weight_decay"], group["betas"])
    assert kept_options == (0.02, 0.3, (0.98, 0.92, 0.99))  # two betas do not make three
    for p in params:
        assert set(new.state[p]) == {"step", "exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"}
        for name, value in kept[p].items():
            assert torch.equal(new.state[p][name], value), name
        assert not new.state[p]["exp_avg_diff"].any()
    train(new, params, 3, 5)
    assert float(new.state[params[0]]["step"]) == 5


def test_switch_there_and_back_changes_nothing() -> None:
    params, twins = weights(), weights()
    optimizer: Optimizer = AdamW(params, lr=0.02)
    plain = AdamW(twins, lr=0.02)
    train(optimizer, params, 0, 3)
    optimizer = switch(switch(optimizer, "cadamw"), "adamw")
    train(optimizer, params, 3, 6)
    train(plain, twins, 0, 6)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("to", ["lion", "muon", "adan"])
def test_a_switch_takes_new_ways_to_keep_and_carries_what_others_keep(to: str) -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 4096).view(64, 64).bfloat16())
    old = AdamW([p], rounding="kahan", state_storage="bfloat16", execution="batched")
    p.grad = torch.linspace(1, 2, 4096).view(64, 64).bfloat16()
    old.step()
    old.state[p]["slow"] = slow = torch.ones(3)
    lost, average = old.state[p]["kahan"].clone(), old.state[p]["exp_avg"].float()
    new = switch(old, to, state_storage="int8")
    assert all(g["state_storage"] == "int8" and g["rounding"] == "kahan" for g in new.param_groups)
    state = new.state[p]
    assert state["slow"] is slow and torch.equal(state["kahan"], lost)
    assert ("exp_avg_sq" in state) is (to == "adan")
    if to != "muon":
        assert state["exp_avg"].dtype == torch.int8
        form = new.keeping_of(new.param_groups[0]).of(new.chain_of(new.param_groups[0]), p)
        (kept,) = (one for one in form if one.slot.name == "exp_avg")
        torch.testing.assert_close(kept.read(state, p), average, rtol=0.1, atol=1e-3)
    new.step()
    new = switch(new, to, rounding="nearest", state_storage="float32")
    assert new.state[p]["slow"] is slow and "kahan" not in new.state[p]
    assert all(v.dtype == torch.float32 for v in new.state[p].values())


def test_no_switch_while_weights_are_predicted() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamW([p])
    with views.predicted(optimizer, lambda *_: torch.ones(3)), pytest.raises(RuntimeError, match="predicted"):
        switch(optimizer, "lion")
    assert torch.equal(p, torch.ones(3)) and optimizer.param_groups[0]["method"] == "adamw"


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_scheduler_drives_the_optimizer_after_a_switch(tensor_lr: bool) -> None:
    params = weights()
    lr: Any = torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0
    old = AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], lr=lr)
    scheduler = StepLR(old, 1, gamma=0.5)
    train(old, params, 0, 1)
    scheduler.step()
    new = switch(old, "lion", betas=(0.9, 0.95), weight_decay=0.0)
    assert [float(g["lr"]) for g in new.param_groups] == [0.5, 0.05]
    assert [g["betas"] for g in new.param_groups] == [(0.9, 0.95)] * 2
    train(new, params, 1, 2)
    scheduler.step()
    assert [float(g["lr"]) for g in new.param_groups] == [0.25, 0.025]
    before = params[0].detach().clone()
    train(new, params, 2, 3)
    torch.testing.assert_close((before - params[0].detach()).abs(), torch.full((40, 30), 0.25, dtype=torch.float64))


def test_one_cycle_moves_lr_and_betas() -> None:
    params = weights()
    optimizer = AdamW(params)
    scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    seen = set()
    for t in range(9):
        train(optimizer, params, t, t + 1)
        scheduler.step()
        seen.add((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
    assert len(seen) == 9


@pytest.mark.parametrize("name", polyak.optim.names())
def test_diagnostics_change_nothing(name: str) -> None:
    params = [p for p in weights() if not polyak.optim.get(name).roles or p.ndim > 1]
    optimizer = polyak.optim.get(name)(params)
    train(optimizer, params, 0, 3)
    give_gradients(params, 3)
    params[0].grad = None
    before = everything(params, optimizer)
    groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
    figures = optimizer.diagnostics(loss=LOSS)
    assert unchanged(params, optimizer, before) and optimizer.state_dict()["param_groups"] == groups
    full = [i for i, p in enumerate(params) if p.numel() and p.grad is not None]
    assert list(figures) == [f"parameter {i} of group 0" for i in full]
    moved = [p.detach().clone() for p in params]
    optimizer.step(loss=LOSS)
    for i in full:  # what it said is what the step then did
        rms = (moved[i] - params[i].detach()).square().mean().sqrt()
        assert figures[f"parameter {i} of group 0"]["update_rms"] == pytest.approx(float(rms), rel=1e-6)


@pytest.mark.parametrize("execution", ["eager", "batched"])
def test_mask_share_by_hand(execution: Any) -> None:
    params = weights()
    names = ["a", "b", "c", "d", "e"]
    optimizer = CAdamW(zip(names, params, strict=True), execution=execution)
    train(optimizer, params, 0, 3)
    give_gradients(params, 3)
    figures = optimizer.diagnostics()
    for name, p in zip(names, params, strict=True):
        if p.numel():
            m = 0.9 * optimizer.state[p]["exp_avg"] + 0.1 * p.grad
            assert figures[name]["mask_share"] == pytest.approx(float((m * p.grad > 0).double().mean()), abs=1e-12)


def test_diagnostics_after_weights_were_replaced() -> None:
    params = weights()
    optimizer = TAM(params)
    give_gradients(params)
    for p in params:
        p.data = p.data.clone()
    assert 0 < optimizer.diagnostics()["parameter 0 of group 0"]["damping"] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", polyak.optim.names())
def test_bytes_of_state(name: str, dtype: torch.dtype) -> None:
    """What is counted is what is there: moments of float32 or better, a counter, a few numbers, and nothing else."""
    params = [p for p in weights(dtype) if p.ndim > 1]
    optimizer = polyak.optim.get(name)(params, state_storage="float32")
    train(optimizer, params, 0, 2)
    actual = sum(v.numel() * v.element_size() for p in params for v in optimizer.state[p].values())
    assert optimizer.state_bytes() == actual
    if any(slot.shape not in ("param", "scalar") for slot, _ in optimizer.memories()):
        return  # memories of the sides of a small matrix are a larger share of it
    numbers = sum(slot.shape == "scalar" for slot, _ in optimizer.memories())
    elements, per_tensor = sum(p.numel() for p in params), (4 + 8 * numbers) * len(params)
    kept = optimizer.state_bytes_per_parameter(state_storage="float32")
    moments = kept * elements * (2 if dtype == torch.float64 else 1)
    assert moments <= actual <= moments + per_tensor
    held = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
        for s in optimizer.state.values()
        for v in s.values()
    }
    assert sum(held.values()) <= moments + per_tensor


@pytest.mark.parametrize("name", polyak.optim.names())
def test_maximize_is_minimizing_the_negative(name: str) -> None:
    trained = []
    for maximize in (False, True):
        params = [p for p in weights() if not polyak.optim.get(name).roles or p.ndim > 1]
        options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "maximize": maximize}
        optimizer = polyak.optim.get(name)(params, **options)
        for t in range(3):
            give_gradients(params, t)
            for p in params:
                p.grad = p.grad if maximize else -p.grad
            kept = [p.grad.clone() for p in params]
            optimizer.step(loss=LOSS if maximize else -LOSS)
            assert all(torch.equal(p.grad, g) for p, g in zip(params, kept, strict=True)), "p.grad is the user's"
        trained.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_closure_is_called_once_with_gradients_on() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamW([p])
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 3.0
    assert calls == [True] and bool((p < 1).all())


def test_hooks_run_around_a_step() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = Lion([p])
    order: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: order.append("before"))
    optimizer.register_step_post_hook(lambda *_: order.append("after"))
    p.grad = torch.ones(3)
    optimizer.step()
    assert order == ["before", "after"]


def test_a_step_inside_autocast_is_exact() -> None:
    results = []
    for enabled in (False, True):
        params = [p for p in weights(torch.float32) if p.ndim > 1]
        optimizer = Muon(params)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            train(optimizer, params, 0, 2)
        results.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_diagnostics_inside_autocast_are_those_outside() -> None:
    p = nn.Parameter(torch.randn(16, 16))
    p.grad = torch.randn(16, 16)
    optimizer = Muon([p])
    outside = optimizer.diagnostics()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert optimizer.diagnostics() == outside


def test_explain_names_paths_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [nn.Parameter(torch.zeros(s)) for s in ((300, 200), (5,), (5,), (1,))]
    groups = [{"params": params[:2]}, {"params": params[2:]}]
    text = SGD(groups, execution="compiled").explain()
    assert text.startswith("SGD: compiled (execution='compiled')")
    assert "group 0: decay_coupled > descend; 2 of 2 parameters\n  2 by themselves\n" in text
    assert "not compiled" not in text
    text = SGD(groups, execution="batched").explain()
    assert "2 by themselves" in text and "0 by themselves, 2 together in 1 runs" in text and "not compiled" not in text
    assert "matrix functions run by BLAS, not compiled" in Muon(params[:1], execution="compiled").explain()
    assert "one more pass: a sum over all tensors" in CAdan(params, max_grad_norm=1.0).explain()
    lonely = AdamP([nn.Parameter(torch.zeros(1, 5))], execution="compiled")
    assert "not compiled, a dimension is 1 or the chain reads layers: parameter 0 of group 0" in lonely.explain()
    assert not lonely.state, "to explain is not to begin"
    monkeypatch.setenv("POLYAK_EXECUTION", "eager")
    assert AdamP(params).explain().startswith("AdamP: eager (POLYAK_EXECUTION says so)")


def test_the_environment_decides_for_code_that_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    params = weights()
    optimizer = create("adamw", params, execution="batched")
    train(optimizer, params, 0, 2)
    monkeypatch.setenv("POLYAK_EXECUTION", "eager")
    train(optimizer, params, 2, 4)
    monkeypatch.delenv("POLYAK_EXECUTION")
    train(optimizer, params, 4, 6)
    twins = weights()
    train(AdamW(twins, execution="batched"), twins, 0, 6)
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-13)
