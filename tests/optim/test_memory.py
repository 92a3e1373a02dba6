"""Temporary memory of a step: no copy of the weights, of the gradients or of a direction is ever made as a whole.

The bound is the largest of 5 % of the weights, one chunk of 64 k elements and, for matrix functions, 4 of the largest
matrix, or 4 chunks for a stack of small ones. Plain kernels hold every intermediate result of a slice at the same time,
and what they gathered, so without a compiler a chunk counts four times: twenty slices of 12 k elements.
``execution="eager"`` is for reading along, and is not held to it.
"""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import polyak.optim
from polyak.optim import Optimizer

CHUNK = 64 * 1024 * 4
CHUNKS = {"batched": 4, "compiled": 1}
MODELS: dict[str, list[tuple[int, ...]]] = {
    "many small": [(20, 20)] * 300 + [(16,)] * 300,
    "mixed": [(20, 20)] * 200 + [(16,)] * 200 + [(500, 400)] * 4 + [(4000,)],
    "large": [(600, 500)] * 8,
    "one": [(2000, 1000)],
    "convolutions": [(256, 128, 3, 3), (128, 128, 3, 3), (256,)],
}
METHODS = ("adamw", "adan", "cadamw", "adamp", "tam", "muon")
QUICK = ("adamw",)
OPTIONS: dict[str, dict[str, Any]] = {"adan": {"max_grad_norm": 1.0}, "adamp": {"delta": 3.0}}


def built(name: str, shapes: list[tuple[int, ...]], execution: str, dtype: torch.dtype = torch.float32) -> Optimizer:
    params = [nn.Parameter(torch.randn(s).to(dtype)) for s in shapes if name != "muon" or len(s) > 1]
    for p in params:
        p.grad = torch.randn_like(p)
    return polyak.optim.get(name)(params, execution=execution, **OPTIONS.get(name, {}))


def peak(optimizer: Optimizer) -> int:
    """The most bytes that a step holds beyond what was there before; nothing may be left behind."""
    for _ in range(2):
        optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        optimizer.step()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    assert held == 0
    return most


def bound(optimizer: Optimizer, execution: str) -> float:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    allowed = max(0.05 * sum(p.nbytes for p in params), CHUNKS[execution] * CHUNK)
    if isinstance(optimizer, polyak.optim.Muon):
        allowed = max(allowed, 4 * CHUNK, 4 * 4 * max(p.numel() for p in params if p.ndim > 1))
    return allowed


def check(optimizer: Optimizer, execution: str) -> None:
    most, allowed = peak(optimizer), bound(optimizer, execution)
    assert most <= allowed, f"{most / CHUNK:.2f} chunks held, {allowed / CHUNK:.2f} allowed"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_a_batched_step_needs_little(name: str, model: str) -> None:
    check(built(name, MODELS[model], "batched"), "batched")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_a_compiled_step_needs_little(name: str, model: str) -> None:
    check(built(name, MODELS[model], "compiled"), "compiled")


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("adamw", "batched"),
        ("adamw", "compiled"),
        ("muon", "batched"),
        pytest.param("muon", "compiled", marks=pytest.mark.slow),
    ],
)
def test_half_precision_is_not_copied_to_single(name: str, execution: str) -> None:
    check(built(name, MODELS["large"], execution, torch.bfloat16), execution)


@pytest.mark.parametrize("execution", ["batched", "compiled"])
def test_channels_last(execution: str) -> None:
    optimizer = built("adamw", MODELS["convolutions"], execution)
    for p in optimizer.param_groups[0]["params"][:2]:
        p.data = p.data.to(memory_format=torch.channels_last)
        p.grad = torch.randn_like(p)
    check(optimizer, execution)


@pytest.mark.parametrize("execution", ["batched", "compiled"])
def test_missing_gradients(execution: str) -> None:
    optimizer = built("cadamw", MODELS["mixed"], execution)
    for p in optimizer.param_groups[0]["params"][::3]:
        p.grad = None
    check(optimizer, execution)


def test_nothing_grows_with_the_steps() -> None:
    """Other gradients are missing each time."""
    optimizer = built("adamw", MODELS["many small"], "batched")
    params = optimizer.param_groups[0]["params"]
    optimizer.step()
    grown = 0
    for first in (0, 8, 16):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            for t in range(first, first + 8):
                kept = params[t].grad
                params[t].grad = None
                optimizer.step()
                params[t].grad = kept
        assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
        grown += sum(e.nbytes() for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")
        assert grown < sum(p.nbytes for p in params)


# Known to exceed the bound; strict, so whoever mends one of them is told.
exceeds = pytest.mark.xfail(reason="exceeds the bound")


@pytest.mark.parametrize("execution", ["batched", "compiled"])
@pytest.mark.parametrize("name", ["cadamw", "tam", pytest.param("adamp", marks=exceeds)])
def test_short_rows(name: str, execution: str) -> None:
    """AdamP asks for sums over the rows as they are: many columns of a matrix with two."""
    check(built(name, [(50000, 2), (2, 50000)], execution), execution)


@pytest.mark.parametrize("execution", ["batched", "compiled"])
@pytest.mark.parametrize("name", ["cadamw", "tam"])
def test_a_vector_of_prime_length(name: str, execution: str) -> None:
    check(built(name, [(200003,)], execution), execution)


@exceeds
@pytest.mark.parametrize("execution", ["batched", "compiled"])
def test_gradients_in_other_strides(execution: str) -> None:
    """They are copied to the strides of the weight as a whole."""
    optimizer = built("adamw", MODELS["convolutions"], execution)
    for p in optimizer.param_groups[0]["params"][:2]:
        p.data = p.data.to(memory_format=torch.channels_last)
        p.grad = torch.randn(p.shape)
    check(optimizer, execution)
