"""How an optimizer runs: the ways there are, and which of them is in force."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

from polyak import aot

_F = TypeVar("_F", bound=Callable[..., Any])
# torch.compiler.disable imports torch's compiler (2 s) where it decorates; torch.optim's own way waits until it traces
untraced: Callable[[_F], _F] = getattr(torch, "_disable_dynamo", torch.compiler.disable)

Occasion = Literal["step", "rehearsal", "request"]
Execution = Literal["auto", "eager", "batched", "compiled"]
EXECUTIONS = ("auto", "eager", "batched", "compiled")
OVERRIDE = "POLYAK_EXECUTION"
WORTH_COMPILING = 2**18  # elements under which "auto" does not wait for a compiler


def checked(value: Any, name: str = "execution") -> Execution:
    """``value``, if it is a way of running.

    Raises:
        ValueError: if it is none.
    """
    if value not in EXECUTIONS:
        raise ValueError(f"{name} must be one of {list(EXECUTIONS)}, got {value!r}")
    return value  # type: ignore[no-any-return]


def in_force(execution: Execution, elements: int) -> tuple[str, str]:
    """``"eager"``, ``"batched"`` or ``"compiled"`` for an optimizer of so many elements, and why."""
    override = os.environ.get(OVERRIDE)
    wanted = checked(override, OVERRIDE) if override else execution
    reason = f"{OVERRIDE} says so" if override else f"execution={execution!r}"
    if wanted == "auto":
        wanted = "compiled" if elements >= WORTH_COMPILING else "batched"
        relation = "at least" if wanted == "compiled" else "fewer than"
        reason = f"auto: {elements:,} elements, {relation} the {WORTH_COMPILING:,} that repay a compilation"
    if wanted == "compiled" and (why := aot.unavailable()) is not None:
        return "batched", f"nothing can be compiled in this process: {why}"
    return wanted, reason
