"""The plan of a parameter group: its members, their units, their step counters, and what runs in this step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from operator import attrgetter, is_, itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyak._compiled import failed
from polyak.optim.engine.direct import Prepared, call_all
from polyak.optim.engine.execute import Mode, Pass, Run, coefficients, run
from polyak.optim.engine.layout import Unit
from polyak.optim.engine.member import STEP, Member, local, pointer_of
from polyak.optim.engine.memories import build_units
from polyak.optim.engine.sharding import check_rows, stand_in

if TYPE_CHECKING:
    from polyak.optim.engine.optimizer import Optimizer


# looked up in C, since a step does it for every parameter
_POINTER = Tensor.data_ptr
_GRADIENT, _LAYOUT, _COUNTER = attrgetter("grad"), attrgetter("layout"), itemgetter(STEP)


class GroupPlan:
    """What the engine prepared for one parameter group.

    The plan is good as long as the weights, the memories and the group's static options are where and what they
    were; :meth:`refresh` checks it every step, and a plan that is not good is made anew from ``optimizer.state``.
    """

    def __init__(self, optimizer: Optimizer, index: int, execution: str) -> None:
        self.group: dict[str, Any] = optimizer.param_groups[index]
        self.index = index
        self.optimizer = optimizer
        self.chain = optimizer.chain_of(self.group)
        self.gathers = execution != "eager"
        self.mode = self._mode(execution)
        self.members = self._find_members()
        self.times = self._adopt_times() if self.chain.timed else None
        units = build_units([m for m in self.members if m.numel or m.sharded], self.gathers)
        # in the order of the parameters on every rank, since a shard may be large on one and small on another
        self.units = [stand_in(u) for u in sorted(units, key=lambda u: u.members[0].index)]
        self.grads: list[Tensor | None] = []
        self._listed = [*map(id, self.group["params"])]
        self._counters: list[Any] = [m.state.get(STEP) for m in self.members]
        self._watched = [(m.state, slot.name) for m in self.members for slot in m.chain.slots if m.numel]
        self._params = [m.param for m in self.members]
        self._states = [m.state for m in self.members]
        self.devices = {m.value.device.type for m in self.members}
        self.complete = False
        self._plain = not any(hasattr(m.param, "placements") for m in self.members)
        self._pointers = self._read_pointers()

    def _find_members(self) -> list[Member]:
        names = self.group.get("param_names")
        members: list[Member] = []
        for i, p in enumerate(self.group["params"]):
            wanted = _is_trained(p) or p in self.optimizer.state
            if not wanted or not p.is_floating_point():
                continue
            name = names[i] if names else f"parameter {i} of group {self.index}"
            chain = self.chain.for_shape(p.shape)
            questions = chain.questions(self.group)
            member = Member(p, len(members), self.optimizer.state[p], name, chain, questions)
            if member.sharded and any(q.kind == "rows" for q in questions):
                check_rows(p, name)
            members.append(member)
        return members

    def _mode(self, execution: str) -> Mode:
        return Mode(execution == "compiled", execution == "eager", bool(self.group["maximize"]))

    def _adopt_times(self) -> array[float]:
        """One array for all counters; ``state[p]["step"]`` is a view of it, 0-d and float32 like torch's.

        An array and not a tensor: between the kernels every call into torch finds its code out of the cache.
        """
        times = array("f", [float(m.state.get(STEP, 0.0)) for m in self.members])
        if times:
            steps = torch.frombuffer(times, dtype=torch.float32)
            for i, member in enumerate(self.members):
                member.state[STEP] = steps[i]
        return times

    def _read_pointers(self) -> list[int]:
        """Where weights and memories lie."""
        if self._plain:
            return list(map(_POINTER, self._params)) + [_POINTER(s[name]) for s, name in self._watched]
        return [pointer_of(m.param) for m in self.members] + [pointer_of(s[name]) for s, name in self._watched]

    def refresh(self, execution: str) -> bool:
        """Read the gradients; False if the plan no longer describes the optimizer."""
        optimizer, group = self.optimizer, self.group
        if optimizer.param_groups[self.index] is not group or [*map(id, group["params"])] != self._listed:
            return False
        if self.gathers != (execution != "eager") or optimizer.chain_of(group) is not self.chain:
            return False
        self.mode = self._mode(execution)
        listed = group["params"]
        if len(listed) != len(self.members):
            known = {id(m.param) for m in self.members}
            if any(_is_trained(p) and id(p) not in known and p.is_floating_point() for p in listed):
                return False
        try:
            if self._read_pointers() != self._pointers:
                return False
            if self.times and not self._counts(self.times):
                return False
        except (KeyError, AttributeError):  # the user removed a memory
            return False
        self.grads = list(map(_GRADIENT, self._params))
        present = [g for g in self.grads if g is not None]
        if not self._plain or not set(map(_LAYOUT, present)) <= {torch.strided}:
            self.grads = [self._gradient(m) for m in self.members]
        self.complete = len(present) == len(self.members)
        return True

    def _counts(self, times: array[float]) -> bool:
        """Whether the counters are those that were made of ``times``, and still lie there."""
        same = all(map(is_, map(_COUNTER, self._states), self._counters))
        return same and self._counters[0].data_ptr() == times.buffer_info()[0]

    def _gradient(self, member: Member) -> Tensor | None:
        g = member.param.grad
        if g is None:
            return None
        if g.layout is not torch.strided:
            owner = type(self.optimizer).__name__
            raise RuntimeError(f"{owner} does not support sparse gradients ({member.name}); consider SparseAdam")
        if getattr(g, "placements", None) != getattr(member.param, "placements", None):
            g = g.redistribute(placements=member.param.placements)  # type: ignore[attr-defined]
        return local(g)

    def runs(self) -> Iterator[Run]:
        """This step's runs: every unit, cut where gradients are missing or counters differ.

        Units whose calls are prepared are stepped on the way.
        """
        mode = self.mode
        times = self.times.tolist() if self.times is not None else [0.0] * len(self.members)
        uniform = self.complete and len(set(times)) <= 1
        present = self.grads
        bound: list[tuple[Prepared, list[Any]]] = []
        known: dict[Any, tuple[list[list[str]], Tensor]] = {}
        for unit in self.units:
            whole = ((unit, int(times[0]) + 1),) if uniform else self._parts(unit, times)
            for part, t in whole:
                grads = [g for i in part.indices if (g := present[i]) is not None]
                if not grads and not part.sharded:
                    continue
                key = (id(part.chain), t, part.device)
                if key not in known:
                    known[key] = coefficients(part.chain, self.group, t, part.device)
                names, scalars = known[key]
                ready = part.prepared.get(mode) if grads else None
                g = part.bare_gradients(grads, ready.dtype) if ready is not None else None
                if ready is None or g is None:
                    yield run(Pass(part, names, scalars, mode), grads or None)
                elif part.direct:
                    bound.append((ready, ready.bound(g, scalars)))
                else:
                    part.step_gathered(ready, g, scalars)
        call_all(bound)

    def _parts(self, unit: Unit, times: list[float]) -> Iterator[tuple[Unit, int]]:
        marks = [(self.grads[i] is None, times[i]) for i in unit.indices]
        ends = [i for i in range(1, len(marks) + 1) if i == len(marks) or marks[i] != marks[i - 1]]
        spans = [(a, b) for a, b in zip([0, *ends], ends, strict=False) if unit.sharded or not marks[a][0]]
        for (start, _), part in zip(spans, unit.cut(spans), strict=True):
            yield part, int(marks[start][1]) + 1

    def count_step(self) -> None:
        """Advance the counters of the tensors that were stepped, and let the gradients go."""
        if self.times is not None:
            for i, g in enumerate(self.grads):
                if g is not None:
                    self.times[i] += 1.0
        self.grads = []

    def describe(self, chosen: str) -> Iterator[str]:
        """Lines for ``explain()``: which tensors go together, and every exception."""
        direct = [u for u in self.units if u.direct]
        stacked = [u for u in self.units if not u.direct]
        head = f"group {self.index}: {' > '.join(rule.name for rule in self.chain)}"
        yield f"{head}; {len(self.members)} of {len(self.group['params'])} parameters"
        yield f"  {len(direct)} in place, {sum(len(u.members) for u in stacked)} gathered into {len(stacked)} runs"
        if chosen == "compiled":
            odd = [m.name for u in self.units if not u.compilable and u.numel for m in u.members]
            if odd:
                yield f"  not compiled, a dimension is 1: {_some(odd)}"
        for kind in ("matrix", "total"):
            if any(q.kind == kind for u in self.units for q in u.questions):
                yield (
                    "  matrix functions run by BLAS, not compiled"
                    if kind == "matrix"
                    else "  one more pass: a sum over all tensors"
                )
        sharded = [m.name for u in self.units if u.sharded and u.questions for m in u.members]
        if sharded:
            yield f"  sums cross ranks: {_some(sharded)}"
        if chosen == "batched" and failed():
            yield "  torch.compile failed; see the warning"


def _is_trained(p: Tensor) -> bool:
    return p.requires_grad or p.grad is not None


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
