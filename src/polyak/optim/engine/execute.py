"""Execution: answers the questions of chains and runs the passes of one step.

Each unit is a generator. It runs to the end by itself unless a question needs others (a sum over all tensors, or
over the ranks that hold a sharded tensor); then it waits until all are there and goes on with the answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from polyak.optim.engine import kernels
from polyak.optim.engine.context import Question, Rows
from polyak.optim.engine.layout import Unit
from polyak.optim.engine.rule import Chain
from polyak.optim.engine.sharding import ShardedSums, matrix_of_shards, sums_of_shards


class Mode(NamedTuple):
    """How units run: ``compiled`` kernels, else plain; ``whole`` arrays, else in chunks."""

    compiled: bool
    whole: bool
    maximize: bool


@dataclass
class Waiting:
    """A unit that waits for the others' part of an answer."""

    unit: Unit
    level: int
    terms: tuple[Tensor, ...]

    @property
    def question(self) -> Question:
        """What it waits for."""
        return self.unit.questions[self.level]

    @property
    def is_total(self) -> bool:
        """Whether the answer needs all units, not only the ranks that share this one."""
        return self.question.kind == "total"


Run = Generator[Waiting, Any, None]
Answers = tuple[Any, ...]


class Pass:
    """The kernels of one unit in one step."""

    def __init__(self, unit: Unit, names: list[list[str]], scalars: Tensor, mode: Mode) -> None:
        self.unit, self.names, self.scalars, self.mode = unit, names, scalars, mode
        self.compiled = mode.compiled and unit.compilable
        self.whole = self.compiled or mode.whole

    def _kernel(self, level: int | None, p: Tensor, g: Tensor) -> kernels.Kernel:
        key = (level, self.mode.maximize, g.dtype)
        found = self.unit.kernels.get(key)
        if found is None:
            types = (p.dtype, g.dtype, p.device)
            found = kernels.get(self.unit.chain, self.names, level, self.mode.maximize, *types)
            self.unit.kernels[key] = found
        return cast(kernels.Kernel, found)

    def _each(
        self, kernel: kernels.Kernel, p: Tensor, g: Tensor, memories: list[Tensor], answers: Answers
    ) -> list[Any]:
        """The kernel on the whole arrays, or chunk by chunk."""
        unit = self.unit
        if self.whole:
            call = kernel if self.compiled else kernel.plain
            return [call(p, g, tuple(memories), self.scalars, answers, unit.count)] if unit.numel else []
        results = []
        for c in unit.chunks():
            part = tuple(m[c] for m in memories)
            sizes = None if unit.count is None else unit.count[c]
            results.append(kernel.plain(p[c], g[c], part, self.scalars, _cut(answers, c), sizes))
        return results

    def collect(self, level: int, grads: Sequence[Tensor], answers: Answers) -> tuple[Tensor, ...]:
        """The terms of question ``level``, over the whole unit."""
        unit = self.unit
        p, g = unit.weights(), unit.gradients(grads)
        parts = self._each(self._kernel(level, p, g), p, g, unit.columns_of(), answers)
        if unit.questions[level].kind == "total":
            return tuple(torch.stack(ts).sum() for ts in zip(*parts, strict=True))
        return tuple(ts[0] if len(ts) == 1 else torch.cat(ts) for ts in zip(*parts, strict=True))

    def apply(self, grads: Sequence[Tensor], answers: Answers) -> None:
        """The final pass: weights and memories are written."""
        unit = self.unit
        p, g, memories = unit.weights(), unit.gradients(grads), unit.columns_of()
        kernel = self._kernel(None, p, g)
        self._each(kernel, p, g, memories, answers)
        unit.keep_columns(memories)
        unit.scatter(p)
        stays = unit.array is not None or p is unit.gathered
        if self.compiled and stays and not unit.questions and not unit.has_scalars:
            unit.prepared[self.mode] = kernel.prepared(p, g, tuple(memories), self.scalars, answers, unit.count)


def _cut(answers: Answers, c: slice) -> Answers:
    """The chunk's part of the answers; 0-d ones are for all."""
    return tuple(_cut_one(answer, c) for answer in answers)


def _cut_one(answer: Any, c: slice) -> Any:
    if isinstance(answer, Rows):
        return Rows(_cut_one(answer.row, c), _cut_one(answer.whole, c), answer.worst[c])
    return tuple(t if t.dim() == 0 else t[c] for t in answer)


def run(one: Pass, grads: Sequence[Tensor] | None) -> Run:
    """One unit's step. ``grads`` is None on a rank without a gradient: it only takes part in sums across ranks."""
    unit = one.unit
    answers: Answers = ()
    for level, question in enumerate(unit.questions):
        terms = one.collect(level, grads, answers) if grads is not None else ()
        if question.kind == "total" or unit.sharded:
            answer = yield Waiting(unit, level, terms)
            answers += (_localize(unit, question, terms, answer) if grads is not None else (),)
        else:
            answers += (_answer(unit, question, terms),)
        del terms
    if grads is not None:
        one.apply(grads, answers)


def _answer(unit: Unit, question: Question, terms: tuple[Tensor, ...]) -> Any:
    if question.kind == "matrix":
        assert question.solve is not None
        stack = terms[0].view(len(unit.members), *unit.values[0].shape)
        return (question.solve(stack).reshape(unit.shape).detach(),)
    worst = None
    if question.kind == "rows":
        assert question.solve is not None
        worst = unit.largest(question.solve(*terms))
    return _spread(unit, question, terms, [unit.combine(t) for t in terms], worst)


def _spread(
    unit: Unit, question: Question, terms: tuple[Tensor, ...], sums: Sequence[Tensor], worst: Tensor | None
) -> Any:
    """Sums per member -> columns that kernels can broadcast."""
    dtype = kernels.high(unit.values[0].dtype)
    if question.kind == "mean":
        sums = [s / unit.sizes for s in sums]
    whole = tuple(unit.spread(s).to(dtype) for s in sums)
    if worst is None:
        return whole
    return Rows(tuple(t.to(dtype) for t in terms), whole, unit.spread(worst).to(dtype))


def _localize(unit: Unit, question: Question, terms: tuple[Tensor, ...], answer: Any) -> Any:
    if question.kind == "total":
        return answer
    if question.kind == "matrix":
        return (answer.reshape(unit.shape).detach(),)
    sums, worst = answer
    return _spread(unit, question, terms, sums, worst)


def drive(runs: Sequence[Run]) -> None:
    """Run all units of all groups to the end, answering the questions that need more than one of them.

    Sums across ranks are answered before sums over all tensors, and in the order of the parameters, so that every
    rank enters the same reductions in the same order.
    """
    waiting = [(r, w) for r in runs if (w := next(r, None)) is not None]
    while waiting:
        totals = all(w.is_total for _, w in waiting)
        held = _still_to_come([w for _, w in waiting]) if totals else {w.question for _, w in waiting if w.is_total}
        ready = [(r, w) for r, w in waiting if w.question not in held]
        waiting = [(r, w) for r, w in waiting if w.question in held]
        answers = (_over_all if totals else _over_ranks)([w for _, w in ready])
        for (r, _), answer in zip(ready, answers, strict=True):
            following = _send(r, answer)
            if following is not None:
                waiting.append((r, following))


def _still_to_come(waiting: Sequence[Waiting]) -> set[Question]:
    """Totals that cannot be added up yet, since a unit that waits for another question comes to them later."""
    stages = {(w.unit.questions, w.level) for w in waiting}
    return {q for questions, level in stages for q in questions[level + 1 :] if q != questions[level]}


def check_totals(questions: Iterable[tuple[Question, ...]]) -> None:
    """Refuse chains of one optimizer that ask for the same totals in opposite orders: each would wait for the other."""
    pairs = {
        (a, b)
        for asked in set(questions)
        for a, b in combinations([q for q in asked if q.kind == "total"], 2)
        if a != b
    }
    for a, b in pairs:
        if (b, a) in pairs:
            raise ValueError(f"parameter groups ask for the totals of {a.asker} and {b.asker} in opposite orders")


def _send(r: Run, answer: Any) -> Waiting | None:
    try:
        return r.send(answer)
    except StopIteration:
        return None


def _over_all(asked: Sequence[Waiting]) -> list[Any]:
    """Sums over all tensors of all groups; shards are added over their ranks, replicas count once."""
    sums: dict[Question, ShardedSums] = {}
    for w in asked:
        own = sums.setdefault(w.question, ShardedSums(w.question.width))
        own.add(w.unit if w.unit.sharded else None, w.terms)
    answers = {question: own.result() for question, own in sums.items()}
    return [tuple(t.to(w.unit.device) for t in answers[w.question]) for w in asked]


def _over_ranks(asked: Sequence[Waiting]) -> list[Any]:
    """Sums (or matrix functions) of sharded tensors."""
    answers: list[Any] = []
    sums = iter(sums_of_shards([w for w in asked if w.question.kind != "matrix"]))
    for w in asked:
        if w.question.kind == "matrix":
            assert w.question.solve is not None
            answers.append(matrix_of_shards(w.unit, w.terms[0] if w.terms else None, w.question.solve))
        else:
            answers.append(next(sums))
    return answers


def coefficients(chain: Chain, options: Any, t: int, device: torch.device) -> tuple[list[list[str]], Tensor]:
    """Names and values of all coefficients at step ``t``, the values as one float64 vector on ``device``."""
    by_rule = chain.scalars(options, t)
    names = [list(values) for values in by_rule]
    flat = [value for values in by_rule for value in values.values()]
    if any(isinstance(v, Tensor) for v in flat):  # a tensor lr on an accelerator: no reading it here
        return names, torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device).reshape(()) for v in flat])
    packed = torch.frombuffer(array("d", flat or [0.0]), dtype=torch.float64)
    return names, packed if device.type == "cpu" else packed.to(device, non_blocking=True)
