"""Hyperparameters that many rules share, so that they mean the same everywhere."""

from __future__ import annotations

from typing import Any

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, Hyper


def lr(default: float) -> Hyper:
    """The learning rate."""
    return Hyper("lr", default, NON_NEGATIVE, "learning rate")


def betas(*default: float, static: Any = False) -> Hyper:
    """Retention rates of the moving averages."""
    return Hyper("betas", tuple(default), HALF_OPEN_UNIT, "retention rates of the moving averages", static=static)


def momentum(default: float, static: Any = False) -> Hyper:
    """Retention of the momentum buffer."""
    return Hyper("momentum", default, HALF_OPEN_UNIT, "retention of the momentum buffer", static=static)


def eps(default: float) -> Hyper:
    """The term that keeps a denominator away from zero."""
    return Hyper("eps", default, NON_NEGATIVE, "added to the denominator")


def weight_decay(default: float = 0.0) -> Hyper:
    """Weight decay; its form is the method's."""
    return Hyper("weight_decay", default, NON_NEGATIVE, "weight decay")


def flag(name: str, default: bool, doc: str) -> Hyper:
    """A switch."""
    return Hyper(name, default, (True, False), doc, static=True)


def choice(name: str, default: Any, allowed: tuple[Any, ...], doc: str) -> Hyper:
    """One of several named forms."""
    return Hyper(name, default, allowed, doc, static=True)
