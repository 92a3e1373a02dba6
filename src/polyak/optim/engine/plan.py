"""The plan of a parameter group: its members, their units, and what runs in this step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter, is_
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak import aot
from polyak.optim.engine import units
from polyak.optim.engine.calls import Call, Line, Talk, lines, talk
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import outside
from polyak.optim.engine.keeping import Keeping
from polyak.optim.engine.member import (
    SMALL,
    STEP,
    STEPS,
    Member,
    holds_nothing,
    is_sharded,
    local,
    name_of,
    placed_like,
)
from polyak.optim.engine.rule import Options
from polyak.optim.engine.run import Run, coefficients, run
from polyak.optim.engine.sharding import check_shards
from polyak.optim.engine.units import Mode, Moment, Unit

# looked up in C, since a step does it for every parameter
_ADDRESS, _STRIDE, _NUMEL, _DTYPE = Tensor.data_ptr, Tensor.stride, Tensor.numel, attrgetter("dtype")
Moments = dict[tuple[int, float, torch.device], Moment]
_PLAIN = aot.PLAIN | {type(None)}


class Planned(Protocol):
    """What a plan needs of an optimizer."""

    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Any:
        """``optimizer.state``."""

    def chain_of(self, group: Options) -> Chain:
        """The chain that a group runs."""

    def keeping_of(self, group: Options) -> Keeping:
        """How a group's memories are kept."""

    def salt_of(self, index: int, i: int) -> int:
        """A number that tells a parameter from the others."""


def _of(moments: Moments, m: Member) -> Moment:
    return moments[(id(m.chain), m.time, m.value.device)]


class GroupPlan:
    """What the engine prepared for one parameter group.

    The plan is good as long as weights, memories and the group's static options are where and what they were;
    :meth:`refresh` checks it every step, and a plan that is not good is made anew from ``optimizer.state``.
    """

    def __init__(
        self, optimizer: Planned, index: int, execution: str, grads: list[Tensor | None], dry: bool = False
    ) -> None:
        self.optimizer, self.index, self.execution = optimizer, index, execution
        self.group = optimizer.param_groups[index]
        self.chain, self.keeping = optimizer.chain_of(self.group), optimizer.keeping_of(self.group)
        self.listed = list(self.group["params"])
        self.mode = self._mode(execution)
        self.members: dict[int, Member] = {}
        for i, (p, g) in enumerate(zip(self.listed, grads, strict=True)):
            wanted = g is not None or self._has_state(p) or self._takes_part(p) or (dry and p.requires_grad)
            if wanted and p.is_floating_point():
                self.members[i] = self._member(i, p)
        self.devices = {m.value.device.type for m in self.members.values()}
        self._direct: dict[int, Call] = {}
        self._lines: list[Line] = []
        self._talk: Talk | None = None
        self._apart: list[Any] = []  # names of inputs with which the members make no one line
        self._is_prepared = False
        if not dry:
            self._take(grads)

    def divide(self) -> None:
        """Divide the members into units, knowing which of them share memory."""
        self.units = list(units.build([m for m in self.members.values() if m.numel or m.sharded], *self._ways()))

    def bind(self) -> None:
        """Take the memories from the state, and remember where all lies."""
        for m in self.members.values():
            m.bind(self.optimizer.state[m.param])
        self._weights = [m.param for m in self.members.values()]
        self._plain = not any(hasattr(p, "placements") or holds_nothing(p) for p in self._weights)
        self._slots = [(m.state, key) for m in self.members.values() for key in m.keys]
        self._held = [state[key] for state, key in self._slots]
        self._counters = [m for m in self.members.values() if m.counter is not None]
        self._steps = [m.state[STEP] for m in self._counters]
        self._numbers = [(m.index, m.counter) for m in self._counters]
        self._marks = self._look()
        self._kinds: dict[tuple[Chain, torch.device], list[Any]] = {}
        for m in self.members.values():
            self._kinds.setdefault((m.chain, m.value.device), []).append(m.counter)

    def _has_state(self, p: Tensor) -> bool:
        return bool(self.optimizer.state.get(p))

    def _takes_part(self, p: Tensor) -> bool:
        """Whether other ranks may wait for this one's part of a sum."""
        return p.requires_grad and is_sharded(p) and bool(self.chain.for_shape(p.shape).questions(self.group))

    def _member(self, i: int, p: Tensor) -> Member:
        name = name_of(self.group, self.index, i)
        chain = self.chain.for_shape(p.shape)
        questions = chain.questions(self.group)
        check_shards(p, name, chain, self.group)
        return Member(p, i, name, chain, questions, self.keeping, self.optimizer.salt_of(self.index, i))

    def _mode(self, execution: str) -> Mode:
        return Mode(execution == "compiled", execution == "eager", bool(self.group["maximize"]))

    def _ways(self) -> tuple[bool, bool]:
        return self.execution != "eager", self.execution == "compiled"

    def _look(self) -> tuple[list[Any], ...]:
        """Where weights and memories lie: tensors of one address, stride, size and dtype are the same elements."""
        weights, memories = self._weights, [*self._held, *self._steps]
        if not self._plain:
            weights = [local(t) for t in weights if not holds_nothing(t)]
            memories = [local(t) for t in memories if not holds_nothing(t)]
        addresses = [*map(_ADDRESS, weights), *map(_ADDRESS, memories)]
        # of memories only those that replace others have another stride or size, and these are other tensors
        return addresses, *(list(map(look, weights)) for look in (_STRIDE, _NUMEL, _DTYPE))

    def refresh(self, execution: str, grads: list[Tensor | None]) -> bool:
        """Take the gradients; False if the plan no longer describes the optimizer."""
        optimizer, group = self.optimizer, self.group
        if optimizer.param_groups[self.index] is not group or self.execution != execution:
            return False
        listed = group["params"]
        if len(listed) != len(self.listed) or not all(map(is_, listed, self.listed)):
            return False
        if optimizer.chain_of(group) is not self.chain or optimizer.keeping_of(group) != self.keeping:
            return False
        if len(self.members) < len(listed) and any(
            i not in self.members and p.is_floating_point() and (g is not None or self._takes_part(p))
            for i, (p, g) in enumerate(zip(listed, grads, strict=True))
        ):
            return False
        if self.mode != (mode := self._mode(execution)):
            self.mode, self._direct, self._lines, self._talk, self._apart = mode, {}, [], None, []
        try:
            held = [state[key] for state, key in self._slots]
            steps = [m.state[STEP] for m in self._counters]
        except KeyError:  # the user removed a memory
            return False
        same = all(map(is_, held, self._held)) and all(map(is_, steps, self._steps))
        if not same or self._look() != self._marks:
            return False
        self._take(grads)
        return True

    def owns(self, state: Mapping[Any, Any]) -> bool:
        """Whether the entries of the state are those that the members hold."""
        return all(state.get(m.param) is m.state for m in self.members.values())

    def inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """What enters a step by name as this group has it: what is maximized, the loss has the other sign of."""
        return {**given, "loss": -given["loss"]} if self.mode.maximize and "loss" in given else given

    def moments(self, inputs: dict[str, Any]) -> Moments:
        """What this step gives to its chains; an error in a coefficient comes before anything has moved."""
        found: Moments = {}
        inputs = self.inputs(inputs)
        for (chain, device), counters in self._kinds.items():
            for time in {0.0 if c is None else float(c[0]) for c in counters}:
                names, scalars = coefficients(chain, self.group, int(time) + 1, device)
                found[(id(chain), time, device)] = Moment(names, scalars, inputs)
        return found

    def prepare(self, moments: Moments) -> None:
        """Have the kernels of a first step before it writes anything: to compile takes long, and may be broken off."""
        if self._is_prepared or not self._calls:
            return
        for unit in self.units:
            first = unit.first
            if (unit.gathered or first.is_compilable) and (g := self.grads[first.index]) is not None:
                names, inside = _of(moments, first).names, not first.sharded
                for level in (None, *range(len(outside(first.questions, inside)))):
                    form = units.form_of(first, names, g.dtype, self.mode.maximize, inside, level)
                    units.compiled(form, first.numel <= SMALL, first.value.device)
        self._is_prepared = True

    def runs(self, moments: Moments) -> Iterator[Run]:
        """This step's runs. What is one call of a compiled kernel is done on the way."""
        if self._calls and (together := self._together(moments)):
            yield together
            return
        done = self._run_lines(moments) if self._calls else set()
        if len(done) == len(self.members):
            return
        complete = True
        for unit in self.units:
            first = unit.first
            if first.index in done:
                continue
            if self._calls and first.one_call and not unit.gathered:
                g = self.grads[first.index]
                complete = complete and g is not None
                if g is None or self._call(first, g, _of(moments, first)):
                    continue
            yield from self._runs_of(unit, moments)
        if complete and self._calls and not self._lines:
            self._lines = lines(list(self._direct.values()))

    def _run_lines(self, moments: Moments) -> set[int]:
        """Indices of the members that were stepped in lines."""
        done: set[int] = set()
        for line in self._lines:
            grads = line.take(self.grads)
            moment = _of(moments, line.members[0])
            if grads is None or moment.names != line.names:
                continue
            line.run(grads, moment.scalars, moment.given(line.members[0]))
            increment_version(line.arrays)
            done.update(line.indices)
        return done

    def _together(self, moments: Moments) -> Run | None:
        """All members as one run, if they ask for totals and can be called in lines."""
        if not self.units or not self.units[0].first.asks_totals:
            return None
        members = [m for unit in self.units for m in unit.members]
        grads = [g for m in members if (g := self.grads[m.index]) is not None]
        moment = _of(moments, members[0])
        if len(grads) < len(members) or any(unit.gathered for unit in self.units) or moment.names in self._apart:
            return None
        if self._talk is None or self._talk.names != moment.names:
            self._talk = talk(members, grads, moment.names, self.mode.maximize)
            self._apart += [] if self._talk else [moment.names]
        if self._talk is None or self._talk.passes[0].take(self.grads) is None:
            return None
        return self._talk.run(grads, moment)

    def _call(self, m: Member, g: Tensor, moment: Moment) -> bool:
        """Do a member's step by one call of its kernel, if that is possible."""
        call = self._direct.get(m.index)
        if call is None or call.dtype is not g.dtype or call.names != moment.names:
            form = units.form_of(m, moment.names, g.dtype, self.mode.maximize)
            kernel = units.compiled(form, m.numel <= SMALL, m.value.device)
            if kernel is None:
                return False
            call = self._direct[m.index] = Call(m, form, kernel)
            self._lines = []
        call(g, moment.scalars, moment.given(m))
        increment_version(m.array)
        return True

    def _runs_of(self, unit: Unit, moments: Moments) -> Iterator[Run]:
        first = unit.first
        if unit.sharded and first.questions and self.grads[first.index] is None:
            yield run(unit, [], _of(moments, first), self.mode)
        by_time: dict[float, list[Member]] = {}
        for m in unit.members:
            if self.grads[m.index] is not None:
                by_time.setdefault(m.time, []).append(m)
        for members in by_time.values():
            grads = [g for m in members if (g := self.grads[m.index]) is not None]
            yield run(unit.only(members), grads, _of(moments, members[0]), self.mode)

    def _take(self, grads: list[Tensor | None]) -> None:
        """The gradients, of this rank and placed like their parameters."""
        plain = _PLAIN.issuperset(map(type, grads))
        if not plain:
            grads = [None if g is None else placed_like(g, p) for g, p in zip(grads, self.listed, strict=True)]
            plain = _PLAIN.issuperset(map(type, grads))
        self._calls = self.mode.compiled and plain and aot.usable()
        self.grads = grads

    def count_step(self) -> None:
        """Advance the counters of the tensors that were stepped."""
        for index, counter in self._numbers:
            if self.grads[index] is not None:
                counter[0] += 1.0
        if self.chain.reads_steps:
            self.group[STEPS] += 1

    def let_go(self) -> None:
        """Keep no gradient alive."""
        self.grads = []

    def describe(self) -> Iterator[str]:
        """Lines for ``explain()``: which tensors go together, and every exception."""
        head = f"group {self.index}: {' > '.join(rule.title for rule in self.chain)}"
        yield f"{head}; {len(self.members)} of {len(self.listed)} parameters"
        gathered = [u for u in self.units if len(u.members) > 1]
        alone = sum(len(u.members) == 1 for u in self.units)
        together = sum(len(u.members) for u in gathered)
        yield f"  {alone} by themselves" + (f", {together} together in {len(gathered)} runs" if gathered else "")
        copied = [m.name for m in self.members.values() if not m.direct and m.numel]
        if copied:
            yield f"  copied in and out, their memory has gaps: {_some(copied)}"
        if self.mode.compiled:
            odd = [m.name for m in self.members.values() if m.numel and not m.is_compilable]
            if odd:
                yield f"  not compiled, a dimension is 1 or the chain reads layers: {_some(odd)}"
        kinds = {q.kind for m in self.members.values() for q in m.questions}
        if "matrix" in kinds:
            yield "  matrix functions run by BLAS, not compiled"
        if "total" in kinds:
            yield "  one more pass: a sum over all tensors"
        sharded = [m.name for m in self.members.values() if m.sharded and m.questions]
        if sharded:
            yield f"  sums cross ranks: {_some(sharded)}"
        if self.keeping.storage != "float32":
            high = [m.name for m in self.members.values() if any(k.form is None and k.slot.average for k in m.kept)]
            yield f"  memories kept as {self.keeping.storage}" + (f", not of {_some(high)}" if high else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
