"""What a method declares about itself: hyperparameters and their ranges, its paper, its search space.

The same declarations drive validation, ``polyak show`` and the search of ``polyak compare``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Interval:
    """A range of real numbers; ``str()`` prints it in mathematical notation, e.g. ``[0, 1)``."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below  # NaN fails both comparisons

    def __str__(self) -> str:
        left = "(" if self.low_open or math.isinf(self.low) else "["
        right = ")" if self.high_open or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Described:
    """Values that pass a test, with words for what they are."""

    words: str
    test: Callable[[Any], bool]

    def __contains__(self, value: object) -> bool:
        return self.test(value)

    def __str__(self) -> str:
        return self.words


NON_NEGATIVE = Interval(0.0, math.inf, high_open=True)
POSITIVE = Interval(0.0, math.inf, low_open=True, high_open=True)
UNIT = Interval(0.0, 1.0)
HALF_OPEN_UNIT = Interval(0.0, 1.0, high_open=True)
OPEN_UNIT = Interval(0.0, 1.0, low_open=True, high_open=True)
SHARE = Interval(0.0, 1.0, low_open=True)
COUNT = Interval(1, math.inf, high_open=True)


@dataclass(frozen=True)
class Range:
    """A continuous dimension of a search space, from ``low`` to ``high``, by default on a logarithmic scale."""

    low: float
    high: float
    log: bool = True


@dataclass(frozen=True)
class Choice:
    """A discrete dimension of a search space. Values may be tuples (e.g. whole ``betas``)."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter of a method: its name, default, allowed values and meaning.

    ``allowed`` is an :class:`Interval` (for a number, or for each entry of a tuple whose length is that of the
    default), a tuple of the values allowed, or :class:`Described`. ``optional`` admits ``None``. A ``static``
    hyperparameter selects code rather than entering an equation; ``"zero"`` means that only whether it is zero (or
    None) does. ``search`` is where a search looks. An argument that ``fills`` another option gives its value in the
    groups that a method's main rule does not take.
    """

    name: str
    default: Any
    allowed: Interval | tuple[Any, ...] | Described
    doc: str = ""
    optional: bool = False
    static: bool | Literal["zero"] = False
    search: Range | Choice | None = None
    fills: str = ""

    def signature(self, value: Any) -> Any:
        """What of the value selects code; hashable."""
        if self.static == "zero":
            return tuple(v == 0 for v in value) if isinstance(value, (tuple, list)) else not value
        if not self.static:
            return None
        return _frozen(value)

    def check(self, value: Any, owner: str) -> None:
        """Raise ``ValueError`` (or ``TypeError``) naming the argument, the value and what is allowed."""
        if value is None and self.optional:
            return
        if isinstance(self.allowed, tuple):
            if not any(value is a or (type(value) is type(a) and value == a) for a in self.allowed):
                raise ValueError(f"{owner}: {self.name} must be one of {list(self.allowed)}, got {value!r}")
            return
        if isinstance(self.allowed, Described):
            if value not in self.allowed:
                raise ValueError(f"{owner}: {self.name} must be {self.allowed}, got {value!r}")
            return
        if isinstance(self.default, tuple):
            self._check_tuple(value, owner)
            return
        self._check_number(value, self.name, owner)

    def _check_tuple(self, value: Any, owner: str) -> None:
        length = len(self.default)
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != length:
            raise ValueError(f"{owner}: {self.name} must be {length} numbers, each in {self.allowed}, got {value!r}")
        for i, entry in enumerate(value):
            self._check_number(entry, f"{self.name}[{i}]", owner)

    def _check_number(self, value: Any, name: str, owner: str) -> None:
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                raise ValueError(f"{owner}: {name} as a tensor must have one element, got shape {tuple(value.shape)}")
            if value.device.type != "cpu":
                return  # reading it would wait for the device
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{owner}: {name} must be a number in {self.allowed}, got {value!r}")
        if isinstance(self.default, int) and not isinstance(self.default, bool) and not isinstance(value, Integral):
            raise TypeError(f"{owner}: {name} must be an integer in {self.allowed}, got {value!r}")
        if float(value) not in self.allowed:
            raise ValueError(f"{owner}: {name} must be in {self.allowed}, got {value!r}")


def whole(name: str, value: Any, owner: str, allowed: Interval = COUNT) -> int:
    """A value as a whole number, for arguments that no field declares.

    Raises:
        TypeError: it is none.
        ValueError: one that is not allowed. Both name the argument, the value and what is allowed.
    """
    Hyper(name, 1, allowed).check(value, owner)
    return int(value)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. ``arxiv`` is the identifier (``2208.06677``), empty where there is none."""

    title: str
    year: int
    arxiv: str = ""
    url: str = ""

    @property
    def link(self) -> str:
        """The address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else self.url


SearchSpace = Mapping[str, Range | Choice]
