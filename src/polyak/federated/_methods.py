"""What aggregators and attacks share: declared arguments that stay as they are, and a list by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

from typing_extensions import Self

from polyak.declare import Declared, Field, Interval, nearest

Byzantine = Annotated[int, Interval(0, math.inf, high_open=True), "vectors that may be anything"]
Kind = TypeVar("Kind", bound="Frozen")


class Frozen(Declared):
    """A declared method that stays as it was made; equal to another with the same arguments.

    ::

        what it computes
    """

    def _set_field(self, field: Field, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: make another with {field.name}={value!r}")

    def replaced(self, **changes: Any) -> Self:
        """The same method with other arguments."""
        return type(self)(**{**vars(self), **changes})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


class Listing(Generic[Kind]):
    """Methods of one sort by their names.

    Args:
        kinds: the classes.
        what: the word for one of them, for messages.
    """

    def __init__(self, kinds: Sequence[type[Kind]], what: str) -> None:
        self._known, self._what = {kind.slug: kind for kind in kinds}, what

    def names(self) -> list[str]:
        """The names of all, in alphabetical order."""
        return sorted(self._known)

    def get(self, name: str) -> type[Kind]:
        """The class of a name.

        Raises:
            ValueError: a name that there is not; the nearest is named.
        """
        if name not in self._known:
            hint = nearest(name, self._known) or f"there are {self.names()}"
            raise ValueError(f"there is no {self._what} {name!r}; {hint}")
        return self._known[name]
