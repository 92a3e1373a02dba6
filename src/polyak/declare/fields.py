"""Hyperparameters as annotated class fields: the annotations, and how one is read.

``lr: Annotated[Lr, Range(1e-5, 1e-2)] = 1e-4`` says the type, the values allowed, where a search looks, what it means
and the default, once. Of two entries of one kind the last counts, so that a field can narrow a shared annotation.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from polyak.declare.hypers import HALF_OPEN_UNIT, NON_NEGATIVE, UNIT, Choice, Described, Hyper, Interval, Range


@dataclass(frozen=True)
class Static:
    """The value (or, with ``"zero"``, only whether it is zero) selects code rather than entering an equation."""

    what: bool | Literal["zero"] = True


@dataclass(frozen=True)
class Fills:
    """The argument gives the option ``name`` of the groups that the main rule does not take."""

    name: str


@dataclass(frozen=True)
class Argument:
    """An argument of the constructor that is no hyperparameter: it is not checked, searched or kept in groups."""

    words: str


STATIC = Static()
STATIC_IF_ZERO = Static("zero")


def fills(name: str) -> Fills:
    """The argument gives the option ``name`` of auxiliary groups: ``aux_lr: Annotated[Lr, fills("lr")] = 3e-4``."""
    return Fills(name)


Lr = Annotated[float, NON_NEGATIVE, "learning rate"]
Betas = Annotated[tuple[float, float], HALF_OPEN_UNIT, "retention rates of the moving averages"]
Betas3 = Annotated[tuple[float, float, float], HALF_OPEN_UNIT, "retention rates of the moving averages"]
Eps = Annotated[float, NON_NEGATIVE, "added to the denominator"]
WeightDecay = Annotated[float, NON_NEGATIVE, "weight decay"]
Momentum = Annotated[float, HALF_OPEN_UNIT, "retention of the momentum buffer"]
Dampening = Annotated[float, UNIT, STATIC_IF_ZERO, "dampening of the gradient in the momentum"]
Nesterov = Annotated[bool, "read the momentum one step ahead"]
MaxGradNorm = Annotated[
    float, NON_NEGATIVE, STATIC_IF_ZERO, "largest norm of the gradient over all tensors of all groups; 0: no clipping"
]


def plain(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and what ``Annotated`` says about it."""
    if get_origin(annotation) is Annotated:
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


def hyper(name: str, annotation: Any, default: Any) -> Hyper:
    """The hyperparameter that an annotated field declares; rules use it for those they share.

    Raises:
        TypeError: an annotation from which the allowed values cannot be told.
        ValueError: a default that is not allowed, a search range that reaches outside.
    """
    kind, notes = plain(annotation)
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    optional = type(None) in members
    members = tuple(m for m in members if m is not type(None))
    allowed = _last(notes, (Interval, Described, tuple)) or _implied(members)
    if allowed is None:
        raise TypeError(f"{name}: the values allowed of {kind} must be said: Annotated[..., an Interval or Described]")
    if float in members and type(default) is int:
        default = float(default)
    static = _last(notes, (Static,)) or Static(isinstance(allowed, tuple))
    filled = _last(notes, (Fills,))
    found = Hyper(
        name, default, allowed, _last(notes, (str,)) or "", optional, static.what,
        _last(notes, (Range, Choice)), filled.name if filled else "",
    )  # fmt: skip
    _check(found)
    return found


def _last(notes: tuple[Any, ...], kinds: tuple[type, ...]) -> Any:
    return next((note for note in reversed(notes) if isinstance(note, kinds)), None)


def _implied(members: tuple[Any, ...]) -> Interval | tuple[Any, ...] | None:
    """The values that a type allows by itself: those of a Literal, True and False, every number."""
    if members == (bool,):
        return (True, False)
    if all(get_origin(m) is Literal for m in members):
        return tuple(value for m in members for value in get_args(m))
    numbers = [m for m in members if m in (int, float) or (get_origin(m) is tuple and set(get_args(m)) <= {int, float})]
    return Interval() if len(numbers) == len(members) else None


def _check(found: Hyper) -> None:
    found.check(found.default, "default")
    if isinstance(found.search, Choice):
        for value in found.search.values:
            found.check(value, "search")
    elif found.search is not None:
        low, high = found.search.low, found.search.high
        for value in (low, high):
            found.check(value, "search")
        if not low < high or (found.search.log and low <= 0):
            raise ValueError(f"search: {found.name} is searched from {low} to {high}, which is no range")
