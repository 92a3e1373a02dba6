"""Mistakes are refused where they are made, by name, and change nothing."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak.optim
from polyak.optim import SGD, SGDP, AdamW, Adan, AdEMAMix, Lion, Muon, Optimizer, chain, create, rules, switch

NAN = float("nan")


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (2, 2)))


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], dict[str, Any]]:
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return params, copy.deepcopy(optimizer.state_dict())


def check_unchanged(optimizer: torch.optim.Optimizer, before: tuple[list[Tensor], dict[str, Any]]) -> None:
    params, state = snapshot(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(params, before[0], strict=True))
    assert state["param_groups"] == before[1]["param_groups"]
    assert state["state"].keys() == before[1]["state"].keys()
    for key, memories in state["state"].items():
        assert all(torch.equal(v, before[1]["state"][key][name]) for name, v in memories.items())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: AdamW([p], lr=-1.0), r"AdamW: lr must be in \[0, inf\), got -1.0"),
        (lambda p: AdamW([p], lr=NAN), "lr .*got nan"),
        (lambda p: AdamW([p], lr=float("inf")), "lr .*got inf"),
        (lambda p: AdamW([p], betas=(0.9, 1.0)), r"betas\[1\] must be in \[0, 1\), got 1.0"),
        (lambda p: AdamW([p], betas=(-0.1, 0.9)), r"betas\[0\] .*got -0.1"),
        (lambda p: AdamW([p], betas=(NAN, 0.9)), r"betas\[0\] .*got nan"),
        (lambda p: AdamW([p], betas=(0.9, 0.99, 0.999)), "betas must be 2 numbers"),
        (lambda p: Adan([p], betas=(0.9, 0.99)), "betas must be 3 numbers"),
        (lambda p: AdEMAMix([p], betas=(0.9, 0.99)), "betas must be 3 numbers"),
        (lambda p: AdamW([p], betas=0.9), "betas must be 2 numbers"),
        (lambda p: AdamW([p], eps=-1e-8), "eps"),
        (lambda p: AdamW([p], weight_decay=NAN), "weight_decay .*got nan"),
        (lambda p: AdamW([p], amsgrad="yes"), r"amsgrad must be one of \[True, False\], got 'yes'"),
        (lambda p: SGD([p], nesterov=True), "nesterov needs momentum"),
        (lambda p: SGD([p], momentum=0.9, dampening=0.1, nesterov=True), "nesterov needs .*dampening = 0"),
        (lambda p: SGD([p], momentum=1.5), r"momentum .*\[0, 1\), got 1.5"),
        (lambda p: SGDP([p], project_buffer=True, nesterov=True), "project_buffer"),
        (lambda p: AdEMAMix([p], alpha_warmup=-1), "alpha_warmup"),
        (lambda p: Muon([p], ns_steps=0), "ns_steps"),
        (lambda p: Muon([p], ns_coefficients="best"), "ns_coefficients must be .*'original'.*got 'best'"),
        (lambda p: Muon([p], ns_coefficients=(1.0, 2.0)), "ns_coefficients"),
        (lambda p: Muon([{"params": [p, param(3)]}]), r"Muon needs matrices, parameter 1 has shape \(3,\)"),
        (lambda p: Muon([{"params": [("w", p), ("b", param(3))]}]), "Muon needs matrices, b has shape"),
        (lambda p: AdamW([]), "empty parameter list"),
        (lambda p: AdamW([p, p]), "twice"),
        (lambda p: AdamW([{"params": [p]}, {"params": [p]}]), "more than one parameter group"),
        (lambda p: AdamW([p * 2]), "non-leaf"),
        (lambda p: AdamW([p], execution="fast"), "execution must be one of .*'compiled'.*got 'fast'"),
        (lambda p: create("adamw", nn.Linear(2, 2), roles={"missing.*": "head"}), "matches 'missing"),
        (lambda p: create("adamw", nn.Linear(2, 2), roles={"weight": "tail"}), "must be one of .*'head'.*got 'tail'"),
        (lambda p: create("adamm", [p]), "did you mean adam"),
        (lambda p: create("frobnicate", [p]), "there are adabelief, adam"),
        (lambda p: polyak.optim.get("cadam"), "did you mean .*cadamw"),
    ],
)
def test_refused_by_value(make: Callable[[nn.Parameter], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(param())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: AdamW([p], lr="fast"), "lr must be a number"),
        (lambda p: AdamW([p], lr=True), "lr must be a number"),
        (lambda p: AdamW([p], lr=None), "lr must be a number"),
        (lambda p: Muon([p], ns_steps=2.5), "ns_steps must be an integer"),
        (lambda p: AdamW(p), "iterable of tensors"),
        (lambda p: AdamW([1.0]), "can only optimize Tensors"),
        (lambda p: AdamW([nn.Parameter(torch.ones(2, dtype=torch.complex64))]), "parameter 0 is complex.*view_as_real"),
        (lambda p: Optimizer([p], chain(rules.adam(), rules.descend()), momentum=0.9), "has no argument 'momentum'"),
        (lambda p: create("adamw", [p], weight_decai=0.1), "did you mean 'weight_decay'"),
        (lambda p: create("adamw", [p], roles={"*": "head"}), "roles= needs a module"),
        *((lambda p, s=s: AdamW([p], **{s: True}), s) for s in ("foreach", "fused", "capturable", "differentiable")),
        *((lambda p, s=s: create("sgd", [p], **{s: False}), s) for s in ("foreach", "fused")),
        (lambda p: copy.copy(AdamW([p])), "deepcopy"),
    ],
)
def test_refused_by_kind(make: Callable[[nn.Parameter], Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        make(param())


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: chain(rules.adam()), ValueError, "must end with a rule that moves the weight"),
        (lambda: chain(rules.adam(), rules.decay()), ValueError, "must end with"),
        (lambda: chain(rules.adam(), rules.adan(), rules.descend()), ValueError, "both keep a memory named 'exp_avg'"),
        (lambda: chain(rules.cautious(), rules.adam(), rules.descend()), ValueError, "cautious reads a memory out"),
        (lambda: chain(rules.grams(), rules.descend()), ValueError, "grams reads a memory out"),
        (lambda: chain(rules.adam(), rules.descend(), rules.cautious()), ValueError, "cautious comes after the step"),
        (lambda: chain(rules.decay("coupled"), rules.lion(), rules.descend()), ValueError, "before lion makes"),
        (lambda: chain(rules.adam, rules.descend()), TypeError, "a rule factory must be called"),
        (lambda: chain(rules.adam(), rules.ademamix(), rules.descend()), ValueError, "memory named"),
        (lambda: chain(rules.adam(), rules.descend()).at("nowhere", rules.cautious()), ValueError, "places are"),
        (lambda: chain(rules.adam(), rules.descend()).at("exp_avg", rules.adan()), ValueError, "without memory"),
        (lambda: chain(rules.cautious("median")), ValueError, "scale must be one of"),
        (lambda: chain(), ValueError, "must end with"),
    ],
)
def test_chains(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Optimizer([param()], make())


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYAK_EXECUTION", "quickly")
    with pytest.raises(ValueError, match=r"POLYAK_EXECUTION must be one of .*got 'quickly'"):
        AdamW([param()])


def test_all_groups_empty_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="all parameter groups are empty"):
        AdamW([{"params": []}]).step()


def test_likely_mistakes_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="looks like the paper's 1 - beta"):
        Adan([param()], betas=(0.02, 0.08, 0.01))
    with pytest.warns(UserWarning, match="outside Lion's theory"):
        Lion([param()], betas=(0.99, 0.9))
    with pytest.warns(UserWarning, match="slow average"):
        AdEMAMix([param()], betas=(0.9, 0.999, 0.5))


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    for lr in (np.float64(0.1), np.float32(0.1), np.int64(1), 1, torch.tensor(0.1)):
        AdamW([param()], lr=lr)


def test_integer_parameters_are_skipped() -> None:
    p, counts = param(), nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    optimizer = AdamW([p, counts])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert bool((counts == 1).all()) and counts not in optimizer.state


@pytest.mark.parametrize("group", range(2))
def test_sparse_gradients_change_nothing(group: int) -> None:
    a, b = param(), param(4, 2)
    optimizer = Adan([{"params": [a]}, {"params": [b]}][:: 1 if group else -1])
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    optimizer.step()
    before = snapshot(optimizer)
    b.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match=rf"sparse gradients are not supported \(parameter 0 of group {group}\)"):
        optimizer.step()
    check_unchanged(optimizer, before)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_check_finite_names_the_parameter_and_changes_nothing(bad: float) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = Adan(model.named_parameters(), check_finite=True, max_grad_norm=1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = snapshot(optimizer)
    model[1].bias.grad[2] = bad
    with pytest.raises(RuntimeError, match=r"non-finite gradient in 1\.bias; nothing"):
        optimizer.step()
    check_unchanged(optimizer, before)


@pytest.mark.parametrize(
    "group",
    [
        {"params": [param()], "lr": -1.0}, {"params": [param()], "betas": (0.9,)}, {"params": [param() * 2]},
        {"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]}, {"params": {param()}}, {"params": [3]},
        {"params": [param()], "method": 3, "eps": -1.0},
    ],
)  # fmt: skip
def test_a_group_that_does_not_fit_leaves_the_others(group: dict[str, Any]) -> None:
    p = param()
    optimizer = AdamW([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    before, states = snapshot(optimizer), len(optimizer.state)
    with pytest.raises((TypeError, ValueError)):
        optimizer.add_param_group(group)
    check_unchanged(optimizer, before)
    assert len(optimizer.param_groups) == 1 and len(optimizer.state) == states
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    optimizer.step()


def test_muon_refuses_a_vector_added_late() -> None:
    optimizer = Muon([param()])
    with pytest.raises(ValueError, match='role="vector"'):
        optimizer.add_param_group({"params": [param(3)]})
    assert len(optimizer.param_groups) == 1


def test_a_switch_that_fails_leaves_the_old_optimizer() -> None:
    p = param()
    optimizer = AdamW([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = snapshot(optimizer)
    for name, options in (("lionn", {}), ("lion", {"lr": -1.0}), ("lion", {"momentum": 0.9})):
        with pytest.raises((TypeError, ValueError)):
            switch(optimizer, name, **options)
        check_unchanged(optimizer, before)
    optimizer.step()


def test_an_error_in_the_closure_changes_nothing() -> None:
    p = param()
    optimizer = AdamW([p])
    p.grad = torch.ones_like(p)
    before = snapshot(optimizer)

    def closure() -> float:
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    check_unchanged(optimizer, before)
