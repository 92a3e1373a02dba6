"""Calls: passes over a tensor that are one call of a compiled kernel, in place, and lines of such calls.

A thousand small tensors take 1 to 2 microseconds each for their kernels, so what surrounds a call is done for all at
once, in C where it can be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak.optim.engine import units
from polyak.optim.engine.context import outside
from polyak.optim.engine.kernels import Form, pack
from polyak.optim.engine.member import SMALL, Member
from polyak.optim.engine.units import Moment, Unit, Waiting

_DTYPE = attrgetter("dtype")


class Call:
    """One member's step, or a pass of it."""

    def __init__(self, member: Member, form: Form, run: Callable[[list[Tensor]], Any]) -> None:
        self.member, self.dtype, self.names, self.run = member, form.gradient, form.names, run
        parts = [_whole(m, part) for m, part in zip(member.memories, member.parts, strict=True)]
        self.tail = [*([member.facts] if form.has_facts else []), *parts]

    def __call__(self, g: Tensor, scalars: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Do it with a gradient of the member's dtype."""
        self.run([self.member.array, self.member.gradient(g), *scalars, *self.tail, *inputs])


def _whole(memory: Tensor, part: Tensor) -> Tensor:
    """A memory itself where its array begins where it does, and not a view of it: a tensor less to fetch each step."""
    plain = type(memory) is Tensor and memory.is_contiguous() and not memory.is_neg()
    return memory if plain and memory.data_ptr() == part.data_ptr() else part


class Line:
    """Calls with the same coefficients, on contiguous weights."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.names = calls[0].names
        self.members = [call.member for call in calls]
        self.indices = [m.index for m in self.members]
        self._runs = [call.run for call in calls]
        self.arrays = [m.array for m in self.members]
        self._tails = [call.tail for call in calls]
        self._dtypes = {call.dtype for call in calls}
        self._counters = [m.counter for m in self.members if m.counter is not None]
        self._single = [i for i, m in enumerate(self.members) if m.numel == 1]

    def take(self, grads: Sequence[Tensor | None]) -> list[Tensor] | None:
        """The line's gradients, if all are there and are as the kernels expect them, and all steps are of one time."""
        own: list[Any] = [grads[i] for i in self.indices]
        if type(None) in set(map(type, own)):
            return None
        if not all(map(Tensor.is_contiguous, own)) or set(map(_DTYPE, own)) != self._dtypes:
            return None
        # torch negates lazily only what is a view of imaginary parts, which has gaps unless it is one element
        if any(own[i].is_neg() for i in self._single) or len({c[0] for c in self._counters}) > 1:
            return None
        return own

    def run(self, grads: Sequence[Tensor], scalars: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Any]:
        """All calls, one after the other, and what they find.

        A kernel takes sizes from the weight's array, and of a gradient only where it begins. So a contiguous gradient
        goes in as it is: to make a view of each costs as much as all kernels.
        """
        return [
            run([array, g, *scalars, *tail, *inputs])
            for run, array, g, tail in zip(self._runs, self.arrays, grads, self._tails, strict=True)
        ]


class Talk:
    """The steps of members that ask for sums over all tensors: a line for each question, and one that writes."""

    def __init__(self, passes: Sequence[Line]) -> None:
        self.passes = passes
        self.names = passes[0].names
        self.unit = Unit(passes[0].members, gathered=False)
        self.questions = outside(self.unit.first.questions, True)

    def run(self, grads: Sequence[Tensor], moment: Moment) -> Generator[Waiting, Any, None]:
        """The step, as :func:`polyak.optim.engine.run.run` makes it; the sums have the same order there."""
        given = moment.given(self.unit.first)
        for level, (line, question) in enumerate(zip(self.passes, self.questions, strict=False)):
            found = line.run(grads, moment.scalars, given)
            terms = tuple(torch.stack(list(ts)) for ts in zip(*found, strict=True))
            answer = yield Waiting(self.unit, level, question, terms, moment)
            given = [*given, *pack(answer)]
        self.passes[-1].run(grads, moment.scalars, given)
        increment_version(self.passes[-1].arrays)


def talk(members: Sequence[Member], grads: Sequence[Tensor], names: Any, maximize: bool) -> Talk | None:
    """The members' passes in lines; None if they do not make one line, or a kernel cannot be had."""
    if not all(m.by_calls and m.asks_totals for m in members):
        return None
    passes = []
    for level in (*range(len(outside(members[0].questions, True))), None):
        calls = []
        for m, g in zip(members, grads, strict=True):
            form = units.form_of(m, names, g.dtype, maximize, level=level)
            kernel = units.compiled(form, m.numel <= SMALL, m.value.device)
            if kernel is None:
                return None
            calls.append(Call(m, form, kernel))
        made = lines(calls)
        if len(made) != 1 or len(made[0].members) < len(members):
            return None
        passes += made
    return Talk(passes)


def lines(calls: Sequence[Call]) -> list[Line]:
    """Divide calls into lines.

    In none are calls on weights that are laid out otherwise, or whose steps other processes count too; nor is any where
    packages check the shapes that they are given.
    """
    if os.environ.get("AOTI_RUNTIME_CHECK_INPUTS") == "1":
        return []
    kinds: dict[Any, list[Call]] = {}
    for call in calls:
        m = call.member
        if m.value.is_contiguous() and not isinstance(m.counter, Tensor):
            kinds.setdefault((id(m.chain), call.dtype, call.names, m.value.device), []).append(call)
    return [Line(own) for own in kinds.values()]
