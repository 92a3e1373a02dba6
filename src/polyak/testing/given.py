"""The hyperparameters of a reference vector, each of which must be read by something."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from polyak.optim.create import get

HOW_IT_RAN = ("capturable", "differentiable", "foreach", "fused")
"""Hyperparameters of torch that choose a loop, and not what it computes."""


class Given:
    """The hyperparameters of a manifest that nothing has read yet."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.name, self.rule = manifest.get("name", "the vector"), manifest["rule"]
        self.variant: str = manifest.get("variant") or "default"
        self.left = {k: tupled(v) for k, v in manifest["hyperparameters"].items()}
        for name in HOW_IT_RAN:
            self.take(name, None, (None, False, True))

    def take(self, name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
        """Read a hyperparameter that is no argument of ours."""
        value = self.left.pop(name, default)
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise ValueError(f"{self.name}: {name} = {value!r} is not reproduced, only {listed(allowed)}")
        return value

    def rename(self, **names: str) -> None:
        """Read hyperparameters that are arguments of ours under another name."""
        for theirs, ours in names.items():
            if theirs in self.left:
                self.left[ours] = self.left.pop(theirs)

    def variant_of(self, *known: str) -> str:
        """The variant, which must be one of these."""
        if self.variant not in known:
            raise KeyError(f"no method implements the variant {self.variant!r} of {self.rule!r}, only {listed(known)}")
        return self.variant

    def arguments(self, slug: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """What is left, all of it arguments of that method, beside what the rule and its variant fix."""
        known = {*inspect.signature(get(slug)).parameters, "maximize"} - {"params", "engine"}
        for name, value in self.left.items():
            if name not in known:
                raise ValueError(f"{self.name}: nothing in {slug} reads the hyperparameter {name} = {value!r}")
            if fixed.get(name, value) != value:
                raise ValueError(f"{self.name}: {name} = {value!r} is not reproduced, only {fixed[name]!r}")
        return {**self.left, **fixed}


def tupled(value: Any) -> Any:
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def listed(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
