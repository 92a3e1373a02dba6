"""Running: answers the questions of chains and runs the passes of one step.

Each unit is a generator. It runs to the end by itself unless a question needs others (a sum over all tensors, or over
the ranks that hold a sharded tensor); then it waits until all are there and goes on with the answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from polyak import aot
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import Context, Dialogue, Question, conclude, outside
from polyak.optim.engine.rule import Options
from polyak.optim.engine.sharding import ShardedSums, localize, matrix_of_shards, sums_of_shards
from polyak.optim.engine.units import Mode, Moment, Piece, Unit, Waiting, answer_local, solve_stack

Run = Generator[Waiting, Any, None]


def run(unit: Unit, grads: Sequence[Tensor], moment: Moment, mode: Mode) -> Run:
    """One unit's step. Without ``grads`` (a rank that has none) it only takes part in sums across ranks."""
    pieces = unit.pieces(grads, mode, moment.names) if grads else []
    answers: list[list[Any]] = [[] for _ in pieces]
    inside = pieces[0].inside if pieces else False
    for level, question in enumerate(outside(unit.first.questions, inside)):
        terms = [p.terms(question, moment, own, level) for p, own in zip(pieces, answers, strict=True)]
        if question.kind == "total" or unit.sharded:
            if unit.gathered:
                pieces = []  # copies do not wait for others: it takes less to gather again
            answer = yield Waiting(unit, level, question, _added(terms), moment)
            pieces = pieces or (unit.pieces(grads, mode, moment.names) if grads else [])
            given = [localize(p, question, own, answer) for p, own in zip(pieces, terms, strict=True)]
        elif question.kind == "matrix":
            given = solve_stack(question, terms, unit.first.value.shape)
        else:
            given = [answer_local(p, question, own) for p, own in zip(pieces, terms, strict=True)]
        for own, one in zip(answers, given, strict=True):
            own.append(one)
        del terms, given
    for piece, own in zip(pieces, answers, strict=True):
        apply(piece, moment, own)


def apply(piece: Piece, moment: Moment, answers: list[Any]) -> None:
    """The final pass: weights and memories are written."""
    piece.pass_over(moment, answers, None)
    piece.finish()


def _added(terms: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    if len(terms) <= 1:
        return terms[0] if terms else ()
    return tuple(torch.stack(list(ts)).sum(0) for ts in zip(*terms, strict=True))


def drive(runs: Sequence[Run]) -> dict[str, Tensor]:
    """Run all units of all groups to the end, answering the questions that need more than one of them.

    Sums across ranks are answered before sums over all tensors, and in the order of the parameters, so that every
    rank enters the same reductions in the same order.

    Returns:
        The new values of shared memories, by name.
    """
    new: dict[str, Tensor] = {}
    place = {id(r): i for i, r in enumerate(runs)}
    waiting = [(r, w) for r in runs if (w := next(r, None)) is not None]
    while waiting:
        totals = all(w.is_total for _, w in waiting)
        held = _still_to_come([w for _, w in waiting]) if totals else {w.question for _, w in waiting if w.is_total}
        ready = [(r, w) for r, w in waiting if w.question not in held]
        waiting = [(r, w) for r, w in waiting if w.question in held]
        asked = [w for _, w in ready]
        answers = _over_all(asked, new) if totals else _over_ranks(asked)
        for (r, _), answer in zip(ready, answers, strict=True):
            following = _send(r, answer)
            if following is not None:
                waiting.append((r, following))
        waiting.sort(key=lambda pair: place[id(pair[0])])
    return new


def _still_to_come(waiting: Sequence[Waiting]) -> set[Question]:
    """Totals that cannot be added up yet, since a unit that waits for another question comes to them later."""
    later: set[Question] = set()
    for w in waiting:
        asked = w.unit.first.questions
        later |= {q for q in asked[asked.index(w.question) + 1 :] if q != w.question}
    return later


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


def _over_all(asked: Sequence[Waiting], new: dict[str, Tensor]) -> list[Any]:
    """Sums over all tensors of all groups, or what follows from them, and the ``new`` shared memories.

    Shards are added over their ranks, replicas count once. The first that waits for a sum is of the first group.
    """
    sums: dict[Question, ShardedSums] = {}
    leads: dict[Question, Waiting] = {}
    for w in asked:
        sums.setdefault(w.question, ShardedSums(w.question.width)).add(w.unit, w.terms)
        leads.setdefault(w.question, w)
    added = {question: own.result() for question, own in sums.items()}
    told: dict[tuple[Question, int], tuple[Tensor, ...]] = {}
    for w in asked:
        key, device = (w.question, id(w.moment)), w.unit.first.value.device
        if key not in told:
            there = tuple(t.to(device) for t in added[w.question])
            if w.question.then is None:
                told[key] = there
                continue
            told[key], written = conclude(w.question, there, _context(w, leads[w.question], device))
            if w is leads[w.question]:
                new |= written
    return [told[w.question, id(w.moment)] for w in asked]


def _context(w: Waiting, lead: Waiting, device: torch.device) -> Context:
    """What the rule that asks sees outside of the kernel: its coefficients and inputs, and those of the first group."""
    inputs = {name: v.to(device) for name, v in w.moment.inputs.items() if isinstance(v, Tensor)}

    def of(one: Waiting) -> Context:
        dialogue = Dialogue(one.unit.first.facts[0], torch.float64, inputs=inputs)
        return Context(one.question.asker, _coefficients_of(one, device), dialogue)

    found = of(w)
    found.dialogue.lead = of(lead)
    return found


def _coefficients_of(w: Waiting, device: torch.device) -> dict[str, Any]:
    rules = [rule.name for rule in w.unit.first.chain]
    i, names = rules.index(w.question.asker), w.moment.names
    start = sum(map(len, names[:i]))
    values = w.moment.scalars[0].to(device)[start : start + len(names[i])]
    return dict(zip(names[i], values.unbind(), strict=True))


def _over_ranks(asked: Sequence[Waiting]) -> list[Any]:
    """Sums (or matrix functions) of sharded tensors."""
    answers: list[Any] = []
    sums = iter(sums_of_shards([w for w in asked if w.question.kind != "matrix"]))
    for w in asked:
        if w.question.kind == "matrix":
            answers.append(matrix_of_shards(w))
        else:
            answers.append(next(sums))
    return answers


def _exact(option: Tensor) -> float | Tensor:
    """A tensor option in full precision: a number, or where reading it would wait for a device a tensor."""
    if option.device.type == "cpu" and aot.usable() and option.numel() == 1:
        return float(option)
    return option.detach().double()


def coefficients(chain: Chain, options: Options, t: int, device: torch.device) -> tuple[Any, tuple[Tensor, Tensor]]:
    """Names and values of all coefficients at step ``t``; the values and ``t`` as :class:`Moment` has them."""
    kept = {memory.name for memory in chain.shared}
    tensors = {name: v for name, v in options.items() if isinstance(v, Tensor) and name not in kept}
    if tensors:  # a tensor lr; on an accelerator it stays there
        options = {**options, **{name: _exact(v) for name, v in tensors.items()}}
    by_rule = chain.scalars(options, t)
    names = tuple(tuple(values) for values in by_rule)
    flat = [*(value for values in by_rule for value in values.values()), float(t)]
    if any(isinstance(v, Tensor) for v in flat):
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device).reshape(()) for v in flat])
    elif aot.usable():
        packed = torch.frombuffer(array("d", flat), dtype=torch.float64)
    else:  # some modes must see where a tensor comes from
        packed = torch.tensor(flat, dtype=torch.float64, device="cpu")
    packed = packed.to(device, non_blocking=True)
    return names, (packed, packed.float())


def without_autocast(devices: Iterable[str]) -> ExitStack:
    """A step inside an autocast region must not compute in bfloat16."""
    off = ExitStack()
    for device in set(devices):
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            off.enter_context(torch.autocast(device, enabled=False))
    return off
