"""What a rule sees: the flow, its memories, and a context that answers questions beyond one element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Scalar = float | Tensor
Kind = Literal["sum", "mean", "rows", "columns", "total", "matrix"]


class Flow(NamedTuple):
    """What runs down a chain, for one tensor.

    ``u`` the direction so far (starts as the gradient); ``g`` the gradient, after clipping and before any coupled
    decay; ``p`` the weight at the start of the step; ``w`` the weight written so far; ``decay`` a factor that a
    read-out puts on weight decay (AdamP); ``before`` the memory that the direction was read from as it was before the
    step (AlphaAdam), None behind rules that do not say it.
    """

    u: Tensor
    g: Tensor
    p: Tensor
    w: Tensor
    decay: Scalar = 1.0
    before: Tensor | None = None

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
    """Something a rule asks that one element alone cannot answer.

    Totals of the same ``asker`` are added over all tensors of the optimizer.
    """

    asker: str
    kind: Kind
    solve: Callable[..., Any] | None = None
    width: int = 1

    @property
    def is_local(self) -> bool:
        """Whether a kernel that sees one whole tensor can answer it by itself."""
        return self.kind not in ("total", "matrix")


def outside(questions: Sequence[Question], inside: bool) -> list[Question]:
    """The questions that a kernel is told the answers of; ``inside``: it finds those of one tensor by itself."""
    return [q for q in questions if not (inside and q.is_local)]


class Rows(NamedTuple):
    """Sums over rows (``tensor.shape[0]`` rows): per row, over the whole tensor, and ``worst`` of a row function."""

    row: tuple[Tensor, ...]
    whole: tuple[Tensor, ...]
    worst: Tensor


class Asked(Exception):
    """A question that this pass cannot answer, with this tensor's part of the answer."""

    def __init__(self, question: Question, terms: tuple[Tensor, ...]) -> None:
        super().__init__(question.kind)
        self.question, self.terms = question, terms


class Dialogue:
    """The questions of one pass through a chain.

    Args:
        numel: elements of the whole tensor, as a 0-d float64 tensor.
        dtype: of the flow; answers that are not 0-d come in it.
        answers: answers brought from outside, in the order of the questions asked there.
        inside: whether local questions are answered from the arrays at hand, which then hold a whole tensor.
        inputs: what enters a step by name (``loss``, layer inputs).
    """

    def __init__(
        self,
        numel: Tensor,
        dtype: torch.dtype,
        answers: Sequence[Any] = (),
        inside: bool = True,
        inputs: dict[str, Any] | None = None,
    ) -> None:
        self._numel, self.dtype, self.answers, self.inside = numel, dtype, answers, inside
        self.inputs = inputs or {}
        self.notes: dict[str, Tensor] | None = None
        self._brought = 0

    @property
    def numel(self) -> Tensor:
        """Elements of the whole tensor."""
        return self._numel

    def ask(self, question: Question, terms: tuple[Tensor, ...]) -> Any:
        """The answer; raises :class:`Asked` where it must come from outside and is not there yet."""
        if self.inside and question.is_local:
            return settle(question, terms, self._numel, self.dtype)
        if self._brought == len(self.answers):
            raise Asked(question, terms)
        self._brought += 1
        return self.answers[self._brought - 1]


def settle(question: Question, terms: tuple[Tensor, ...], numel: Tensor, dtype: torch.dtype) -> Any:
    """The answer to a local question from the sums, in float64, over the whole tensor."""
    if question.kind == "rows":
        assert question.solve is not None
        rows = tuple(t.to(dtype) for t in terms)
        return Rows(rows, tuple(t.sum() for t in terms), question.solve(*terms).amax())
    if question.kind == "columns":
        return tuple(t.to(dtype) for t in terms)
    if question.kind == "mean":
        return tuple(t / numel for t in terms)
    if question.kind == "matrix":  # asked for while a chain is looked at: any answer will do
        return (terms[0],) * question.width
    return terms


class Context:
    """What a rule may read besides the flow and its memories.

    The coefficients that the rule's ``scalars`` computed are attributes (0-d tensors, or floats), and so are the named
    inputs that the rule declares (``loss``). The methods ask for sums: in a compiled kernel they are answered on the
    way; where ranks or other tensors have a part in the answer, the chain runs again with the answer known.
    """

    def __init__(self, rule_name: str, coefficients: dict[str, Any], dialogue: Dialogue) -> None:
        self.rule_name = rule_name
        self.dialogue = dialogue
        for name, value in coefficients.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        inputs = self.__dict__["dialogue"].inputs if "dialogue" in self.__dict__ else {}
        if name in inputs:
            return inputs[name]
        raise AttributeError(f"the rule's scalars() return no {name!r}, and no such input was declared")

    @property
    def numel(self) -> Tensor:
        """The number of elements of the tensor (of the whole tensor where it is sharded), a 0-d float64 tensor."""
        return self.dialogue.numel

    def sum(self, *terms: Tensor) -> Any:
        """The sum of each term over the tensor, a 0-d float64 tensor; a tuple for several terms."""
        return self._ask("sum", tuple(t.sum(dtype=torch.float64) for t in terms))

    def mean(self, *terms: Tensor) -> Any:
        """The mean of each term over the tensor."""
        return self._ask("mean", tuple(t.sum(dtype=torch.float64) for t in terms))

    def total(self, *terms: Tensor) -> Any:
        """The sum of each term over all tensors of all groups and ranks: a 0-d float64 tensor."""
        return self._ask("total", tuple(t.sum(dtype=torch.float64) for t in terms))

    def columns(self, *terms: Tensor) -> Any:
        """Sums over each column of the tensor seen as (shape[0], rest): (1, rest)."""
        return self._ask("columns", tuple(t.sum(0, keepdim=True, dtype=torch.float64) for t in terms))

    def rows(self, *terms: Tensor, worst: Callable[..., Tensor] | None = None) -> Rows:
        """Sums over each row of the tensor seen as (shape[0], rest), and over the tensor.

        ``worst`` is a function of the row sums, whose largest value over all rows is found too.
        """
        sums = tuple(t.sum(-1, keepdim=True, dtype=torch.float64) for t in terms)
        question = Question(self.rule_name, "rows", worst or _first, len(terms))
        answer: Rows = self.dialogue.ask(question, sums)
        return answer

    def matrix(self, function: Callable[..., Tensor], value: Tensor, *others: Tensor) -> Tensor:
        """``function`` of ``value`` seen as a stack ``(k, *shape)`` of equal tensors; run by BLAS, not compiled.

        ``others`` go to it stacked, too: numbers, vectors and matrices that belong to each of the tensors, the same on
        every rank where the value is sharded.
        """
        answer: Tensor = self.dialogue.ask(Question(self.rule_name, "matrix", function), (value, *others))[0]
        return answer

    def matrices(
        self, function: Callable[..., tuple[Tensor, ...]], results: int, value: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """:meth:`matrix` of a function with so many results: the first like ``value``, then stacks of any shape."""
        question = Question(self.rule_name, "matrix", function, results)
        answer: tuple[Tensor, ...] = self.dialogue.ask(question, (value, *others))
        return answer

    def note(self, name: str, value: Tensor) -> None:
        """Leave a figure for ``optimizer.diagnostics()``; costs nothing in a step."""
        if self.dialogue.notes is not None:
            self.dialogue.notes[name] = value

    def _ask(self, kind: Kind, terms: tuple[Tensor, ...]) -> Any:
        answer = self.dialogue.ask(Question(self.rule_name, kind, width=len(terms)), terms)
        return answer[0] if len(terms) == 1 else answer


def _first(*sums: Tensor) -> Tensor:
    return sums[0]


class Places(Context):
    """A context that can also pass a memory's read-out through the rules put behind it."""

    def place(self, name: str, value: Tensor) -> Tensor:
        """``value`` after the read-outs that :meth:`Chain.at` put behind the memory ``name``."""
        for where, rule, context in self.behind:
            if where == name:
                moved, _ = rule.update(self.flow.but(u=value), Memories({}), context)
                value = moved.u
        return value
