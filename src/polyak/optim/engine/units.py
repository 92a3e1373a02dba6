"""Units: what goes through the passes of a chain together, and as which arrays.

On a CPU every tensor is worked on in place by a call of its own. Gathering small tensors into one array pays only
where launches are dear (CUDA) or every operation is a call (no compiler). Equal matrices are solved as one stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak import aot
from polyak.optim.engine import kernels
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import Question, settle
from polyak.optim.engine.kernels import Form, high
from polyak.optim.engine.member import SMALL, Member, holds_nothing

SLICE = 12 * 1024
"""Elements at a time without a compiler, where every operation makes an array."""
RUN = {"cpu": 20 * 1024, "cuda": 2**22}
"""Elements that are gathered: on a CPU what stays in cache."""
STACK = {"cpu": 32 * 1024, "cuda": 2**22}
"""Elements of a stack of matrices."""
DEAR = {"cuda"}
"""Devices on which a launch is so dear that tensors are gathered for compiled kernels, too."""

Answers = list[Any]
_compiled: WeakKeyDictionary[Chain, dict[tuple[Any, ...], Callable[[list[Tensor]], Any] | None]] = WeakKeyDictionary()


class Mode(NamedTuple):
    """How units run: ``compiled`` kernels, else plain ones; ``whole`` tensors, else in slices; ``maximize``."""

    compiled: bool
    whole: bool
    maximize: bool


class Moment(NamedTuple):
    """What a step gives to all tensors of a chain: names and values of the coefficients, inputs by name.

    The values, and the step's number as the last, are in one float64 vector and again in a float32 one.
    """

    names: kernels.Names
    scalars: tuple[Tensor, Tensor]
    inputs: dict[str, Any]

    def given(self, m: Member) -> list[Tensor]:
        """The inputs that a member's chain reads; those of layers are told apart by the weight."""
        return [self._one(name, m) for name in m.chain.inputs]

    def _one(self, name: str, m: Member) -> Tensor:
        value = self.inputs[name]
        if isinstance(value, Tensor):
            return value.to(m.value.device)
        if id(m.param) not in value:
            raise RuntimeError(f"no {name} of a layer with the weight {m.name} were seen in the passes before the step")
        tapped: Tensor = value[id(m.param)]
        return tapped


class Piece:
    """The arrays of one kernel call: one tensor in place, or several gathered."""

    def __init__(self, members: Sequence[Member], grads: Sequence[Tensor], mode: Mode, names: kernels.Names) -> None:
        first = self.first = members[0]
        self.members, self.mode = members, mode
        self.device = first.value.device
        if len(members) == 1:
            first.refresh_copies()
            self.p, self.g, self.parts = first.array, first.gradient(grads[0]), first.parts
        else:
            self.p = torch.cat([m.array for m in members])
            self.g = torch.cat([m.gradient(g) for m, g in zip(members, grads, strict=True)])
            self.parts = [torch.cat(list(ts)) for ts in zip(*(m.parts for m in members), strict=True)]
        # gathered tensors of one element make an array of more
        self.compiled = mode.compiled and (first.is_compilable or (len(members) > 1 and first.chain.is_compilable))
        self.inside = not first.sharded
        plain = aot.usable([self.p, self.g, *self.parts])
        self.compiled = self.compiled and plain and self._code(self.form(names, None)) is not None
        rows = self.p.shape[0]
        step = rows if mode.whole or self.compiled or first.uncut else max(1, SLICE // max(self.p[0:1].numel(), 1))
        self.slices = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
        self.inside = self.inside and len(self.slices) <= 1

    def form(self, names: kernels.Names, level: int | None) -> Form:
        """What selects the code of a pass."""
        return form_of(self.first, names, self.g.dtype, self.mode.maximize, self.inside, level)

    def _code(self, form: Form) -> Callable[[list[Tensor]], Any] | None:
        return compiled(form, self.first.numel <= SMALL, self.device)

    def pass_over(self, moment: Moment, answers: Answers, level: int | None) -> list[tuple[Tensor, ...]]:
        """One pass, slice by slice: the terms of question ``level``, or (``None``) nothing, and all is written."""
        form = self.form(moment.names, level)
        run = self._code(form) if self.compiled else None
        if run is not None:
            found = run(self.tensors(form, moment, answers))
            if level is None:
                increment_version(self.p)  # which a package does not do for what it writes
            return [found]
        plain = kernels.function(form)
        if len(self.slices) == 1:
            return [plain(*self.tensors(form, moment, answers))]
        return [plain(*self._cut(form, moment, answers, c)) for c in self.slices]

    def tensors(self, form: Form, moment: Moment, answers: Answers) -> list[Tensor]:
        """What the kernel takes."""
        facts = [self.first.facts] if form.has_facts else []
        brought = [t for answer in answers for t in kernels.pack(answer)]
        return [self.p, self.g, *moment.scalars, *facts, *self.parts, *moment.given(self.first), *brought]

    def _cut(self, form: Form, moment: Moment, answers: Answers, c: slice) -> list[Tensor]:
        """What the kernel takes of a slice.

        Coefficients, and memories that are one number or one for each column, are for all slices: each reads them as
        they were, and the last writes them.
        """
        whole = self.tensors(form, moment, answers)
        slots = [kept.slot for kept in self.first.kept for _ in kept.keys]
        shared = {id(t) for t, slot in zip(self.parts, slots, strict=False) if slot.shape in ("scalar", "column")}
        fixed = {*map(id, moment.scalars), id(self.first.facts)}
        rows, is_last = self.p.shape[0], c is self.slices[-1]

        def cut(t: Tensor) -> Tensor:
            if id(t) in shared:
                return t if is_last else t.clone()
            return t[c] if t.ndim and t.shape[0] == rows and id(t) not in fixed else t

        return [cut(t) for t in whole]

    def terms(self, question: Question, moment: Moment, answers: Answers, level: int) -> tuple[Tensor, ...]:
        """This piece's part of an answer."""
        found = self.pass_over(moment, answers, level)
        if question.kind == "matrix":  # values are cut, what goes along with them is not
            cut = zip(*(ts[: question.parts] for ts in found), strict=True)
            return (*(ts[0] if len(ts) == 1 else torch.cat(ts) for ts in cut), *found[0][question.parts :])
        if question.kind == "rows":
            return tuple(ts[0] if len(ts) == 1 else torch.cat(ts) for ts in zip(*found, strict=True))
        if question.kind == "largest":
            return tuple(torch.stack(ts).amax(0) for ts in zip(*found, strict=True))
        return tuple(ts[0] if len(ts) == 1 else torch.stack(ts).sum(0) for ts in zip(*found, strict=True))

    def finish(self) -> None:
        """Write gathered copies back."""
        if len(self.members) == 1:
            self.first.settle_copies()
            return
        sizes = [m.numel for m in self.members]
        for i, whole in enumerate([self.p, *self.parts]):
            targets = [m.parts[i - 1] if i else m.array for m in self.members]
            torch._foreach_copy_(targets, list(whole.split(sizes)))
        for m in self.members:
            m.settle_copies()


def form_of(
    m: Member,
    names: kernels.Names,
    gradient: torch.dtype,
    maximize: bool,
    inside: bool = True,
    level: int | None = None,
) -> Form:
    """What selects the code of a pass over a member."""
    return Form(
        m.chain, names, m.value.dtype, gradient, m.kept, m.rounding, maximize, m.layout, inside, level
    )  # fmt: skip


def compiled(form: Form, small: bool, device: torch.device) -> Callable[[list[Tensor]], Any] | None:
    """The compiled code of a pass; None where nothing can be compiled."""
    known = _compiled.setdefault(form.chain, {})  # forgotten with the chain, whose rules may be a user's
    key = (*form.variant, small, device)
    if key not in known:
        source = kernels.source(form, small, device)
        kernel = aot.load(source)
        if kernel is None and (aot.failed() is not None or aot.failed(source) is None):
            return None  # compiling is switched off, or was interrupted
        known[key] = None if kernel is None else kernel.run
    return known[key]


@dataclass
class Waiting:
    """A unit that waits for the others' part of an answer."""

    unit: Unit
    level: int
    question: Question
    terms: tuple[Tensor, ...]
    moment: Moment

    @property
    def is_total(self) -> bool:
        """Whether the answer needs all units, not only the ranks that share this one."""
        return self.question.kind == "total"


class Unit:
    """Members that take the passes of their chain together."""

    def __init__(self, members: Sequence[Member], gathered: bool) -> None:
        self.members, self.gathered = list(members), gathered
        self.first = self.members[0]
        self.sharded = self.first.sharded

    def pieces(self, grads: Sequence[Tensor], mode: Mode, names: kernels.Names) -> list[Piece]:
        """The arrays of this step."""
        if self.gathered:
            return [Piece(self.members, grads, mode, names)]
        return [Piece([m], [g], mode, names) for m, g in zip(self.members, grads, strict=True)]

    def only(self, members: Sequence[Member]) -> Unit:
        """This unit with some of its members."""
        return self if len(members) == len(self.members) else Unit(members, self.gathered)


def answer_local(piece: Piece, question: Question, terms: tuple[Tensor, ...]) -> Any:
    """The answer to a local question of an unsharded tensor."""
    return settle(question, terms, piece.first.facts[0], high(piece.p.dtype))


def solve_stack(question: Question, terms: Sequence[tuple[Tensor, ...]], shape: torch.Size) -> list[Answers]:
    """A matrix function of equal tensors, and of what goes along with each, as one stack an argument."""
    stacks = [ts[0][None] if len(ts) == 1 else torch.stack(ts) for ts in zip(*terms, strict=True)]
    values = [stack.view(-1, *shape) for stack in stacks[: question.parts]]
    # of gathered tensors one array is there, and what goes along is the same for all of them
    along = [t.expand(len(values[0]), *t.shape[1:]) for t in stacks[question.parts :]]
    solved, *more = solve(question, *values, *along)
    return [list(own) for own in zip(solved.reshape(stacks[0].shape).unbind(), *more, strict=True)]


def solve(question: Question, *stacks: Tensor) -> tuple[Tensor, ...]:
    """What a matrix function makes of its stacks."""
    assert question.solve is not None
    found: Any = question.solve(*stacks)
    return tuple(t.detach() for t in (found if isinstance(found, tuple) else (found,)))


def build(members: Sequence[Member], gather: bool, compiled: bool) -> Iterator[Unit]:
    """Divide members into units."""
    runs: dict[Any, list[Member]] = {}
    for member in members:
        key = None if member.crossing or not gather else _key(member, compiled)
        if key is None:
            yield Unit([member], gathered=False)
            continue
        run = runs.setdefault(key, [])
        kind = STACK if member.asks_matrices else RUN
        if run and sum(m.numel for m in run) + member.numel > kind.get(member.value.device.type, SLICE):
            yield Unit(run, gathered=key[0] and len(run) > 1)
            run = runs[key] = []
        run.append(member)
    for key, run in runs.items():
        yield Unit(run, gathered=key[0] and len(run) > 1)


def _key(member: Member, compiled: bool) -> tuple[Any, ...] | None:
    """What members that go together have in common, first whether as one array; None for one that goes alone."""
    same = (member.chain, member.kept, member.rounding, member.value.dtype, member.value.device)
    if member.sharded and member.questions:
        return None  # its sums are over ranks of its own
    alone = any(q.is_local for q in member.questions) or member.chain.counts
    elementwise = not alone and not member.chain.reads_layers
    only_arrays = member.layout == "flat" and all(slot.shape == "param" for slot in member.chain.slots)
    dear = not compiled or member.value.device.type in DEAR
    small = 0 < member.numel <= SMALL and member.value.device.type in RUN
    one_array = elementwise and only_arrays and small and not member.draws
    if member.asks_matrices:  # a pass that ends at a question costs a hundred times its kernel: always dear
        return (one_array and all(q.width == 1 for q in member.questions), *same, member.value.shape)
    return (True, *same) if one_array and dear else None


def mark_crossing(members: Iterable[Member]) -> None:
    """Find the members, of all groups, that share memory with another."""
    by_device: dict[torch.device, list[Member]] = {}
    for m in members:
        if m.numel and not holds_nothing(m.value):
            by_device.setdefault(m.value.device, []).append(m)
    for own in by_device.values():
        own.sort(key=lambda m: m.value.data_ptr())
        end, last = 0, own[0]
        for m in own:
            start = m.value.data_ptr()
            if start < end:
                m.set_crossing()
                last.set_crossing()
            if start + _extent(m.value) > end:
                end, last = start + _extent(m.value), m


def _extent(t: Tensor) -> int:
    return t.itemsize * (1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)))
