"""What aggregators and attacks share: declared arguments that stay as they are, and a list by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from typing_extensions import Self

from polyak.declare import Declared, Field, Interval

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


def by_name(name: str, kinds: Sequence[type[Kind]], what: str) -> type[Kind]:
    """The class of a slug; refuses others, naming the nearest."""
    known = {kind.slug: kind for kind in kinds}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(known)}"
        raise ValueError(f"there is no {what} {name!r}; {hint}")
    return known[name]
