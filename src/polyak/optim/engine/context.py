"""What a rule sees: the flow, its memories, and a context that answers questions beyond its own slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor


class Flow(NamedTuple):
    """What runs down a chain, for one tensor.

    ``u`` the direction so far (starts as the gradient); ``g`` the gradient, after clipping and before any coupled
    decay; ``p`` the weight at the start of the step; ``w`` the weight written so far; ``decay`` a factor that a
    read-out puts on weight decay (AdamP).
    """

    u: Tensor
    g: Tensor
    p: Tensor
    w: Tensor
    decay: Scalar = 1.0

    def but(self, **changes: Any) -> Flow:
        """This flow with some fields replaced."""
        return self._replace(**changes)


class Memories:
    """The memories of one rule, by attribute: ``s.exp_avg``."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(f"the rule declares no memory {name!r}")


@dataclass(frozen=True)
class Question:
    """Something a rule asks that its tensor's slice alone cannot answer; answering costs a pass over memory.

    Totals of the same ``asker`` are added over all tensors of the optimizer.
    """

    asker: str
    kind: Literal["sum", "mean", "rows", "total", "matrix"]
    solve: Callable[..., Tensor] | None = None
    width: int = 1


class Rows(NamedTuple):
    """Sums over rows (``tensor.shape[0]`` rows): per row, over the whole tensor, and ``worst`` of a row function."""

    row: tuple[Tensor, ...]
    whole: tuple[Tensor, ...]
    worst: Tensor


class Dialogue:
    """The questions of one pass through a chain: those answered, and the first that is not."""

    def __init__(self, answers: tuple[Any, ...] = (), numel: Any = 1) -> None:
        self.answers = answers
        self.numel = numel
        self.asked = 0
        self.open: tuple[Tensor, ...] | None = None
        self.question: Question | None = None
        self.notes: dict[str, Tensor] | None = None

    def ask(self, question: Question, terms: tuple[Tensor, ...]) -> Any:
        """The answer if it is known; else the terms, as a placeholder, and the pass is over."""
        index = self.asked
        self.asked += 1
        if index < len(self.answers):
            return self.answers[index]
        if index == len(self.answers):
            self.open, self.question = terms, question
        return terms


class Context:
    """What a rule may read besides the flow and its memories.

    The coefficients that the rule's ``scalars`` computed are attributes (0-d tensors, or floats). The methods ask
    for sums; each call costs one more pass over memory, so ask for all terms you can in one call.
    """

    def __init__(self, rule_name: str, coefficients: dict[str, Any], dialogue: Dialogue) -> None:
        self.rule_name = rule_name
        self.dialogue = dialogue
        for name, value in coefficients.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the rule's scalars() return no {name!r}")

    @property
    def numel(self) -> Any:
        """The number of elements of the tensor (of the whole tensor where it is sharded)."""
        return self.dialogue.numel

    def sum(self, *terms: Tensor) -> Any:
        """The sum of each term over the tensor, broadcastable against it; a tuple for several terms."""
        return self._over_tensor("sum", terms)

    def mean(self, *terms: Tensor) -> Any:
        """The mean of each term over the tensor."""
        return self._over_tensor("mean", terms)

    def _over_tensor(self, kind: Literal["sum", "mean"], terms: tuple[Tensor, ...]) -> Any:
        # The engine cuts these rows short and adds their sums in float64, which here would halve the speed.
        sums = tuple(t.sum(-1, keepdim=True) for t in terms)
        return _one(self.dialogue.ask(Question(self.rule_name, kind, width=len(terms)), sums))

    def total(self, *terms: Tensor) -> Any:
        """The sum of each term over all tensors of all groups and ranks: a 0-d tensor."""
        totals = tuple(t.sum(dtype=torch.float64) for t in terms)
        return _one(self.dialogue.ask(Question(self.rule_name, "total", width=len(terms)), totals))

    def rows(self, *terms: Tensor, worst: Callable[..., Tensor]) -> Rows:
        """Sums over each row and over the tensor, and the largest ``worst(*row_sums)`` of all rows."""
        # rows as they are: a sum of millions of float32 in float32 loses digits
        sums = tuple(t.sum(-1, keepdim=True, dtype=torch.float64) for t in terms)
        answer = self.dialogue.ask(Question(self.rule_name, "rows", worst, len(terms)), sums)
        return answer if isinstance(answer, Rows) else Rows(sums, sums, sums[0])

    def matrix(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """``function`` of ``value`` seen as a stack ``(k, *shape)`` of equal tensors; run by BLAS, not compiled."""
        answer: Tensor = self.dialogue.ask(Question(self.rule_name, "matrix", function), (value,))[0]
        return answer

    def note(self, name: str, value: Tensor) -> None:
        """Leave a figure for ``optimizer.diagnostics()``; costs nothing in a step."""
        if self.dialogue.notes is not None:
            self.dialogue.notes[name] = value


def _one(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


class Places(Context):
    """A context that can also pass a memory's read-out through the rules put behind it."""

    def place(self, name: str, value: Tensor) -> Tensor:
        """``value`` after the read-outs that :meth:`Chain.at` put behind the memory ``name``."""
        for where, rule, context in self.behind:
            if where == name:
                moved, _ = rule.update(self.flow.but(u=value), Memories({}), context)
                value = moved.u
        return value
