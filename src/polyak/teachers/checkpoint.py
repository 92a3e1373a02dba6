"""What an EMA stores, and whether what it is given fits it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.teachers.matching import check_fit, is_dtensor, local, without_wrappers
from polyak.teachers.schedules import Power, Schedule

if TYPE_CHECKING:
    from polyak.teachers.ema import EMA

Resume = Literal["same", "mine"]
"""Whose schedules are gone on with: the stored ones, which are to be the same, or those of the object at hand."""

_PAGE = 4096
"""Bytes; states that differ by a digit are tensors of one size, as checkpoints of many ranks want them."""

_COUNTS = ("step", "seen", "updates", "skipped", "_last", "_last_seen")


def save(ema: EMA) -> dict[str, Any]:
    """Averages, counts and what they were made with; see :meth:`EMA.state_dict`."""
    places = ema._sources[0][0].places
    peculiar = ema._treatment.peculiar(places)  # these are the model's
    lasting = {name for name, where in places.items() if where[0].is_persistent and name not in peculiar}
    averages = [{n: x.detach() for n, x in average.items() if n in lasting} for average in ema.averages]
    return {"averages": averages, **progress(ema)}


def gather(ema: EMA, keep: bool) -> dict[str, Any]:
    """As :meth:`EMA.state_dict`, with the whole of sharded tensors, on the CPU; to be called on all ranks.

    Args:
        ema: the averages.
        keep: whether this rank wants the averages; the others only send their shards.
    """
    state = ema.state_dict()
    averages: list[dict[str, Tensor]] = [{} for _ in state["averages"]]
    for average, whole in zip(state["averages"], averages, strict=True):
        for name, tensor in average.items():
            value = tensor.full_tensor() if is_dtensor(tensor) else tensor
            if keep:
                whole[name] = value.cpu() if is_dtensor(tensor) else value
    return {**state, "averages": averages}


def scatter(ema: EMA, state: dict[str, Any]) -> dict[str, Any]:
    """A state of whole tensors, as all ranks have read it, with the shards that each rank's averages have."""

    def like(stored: Tensor, own: Tensor | None) -> Tensor:
        if own is None or not is_dtensor(own):
            return stored
        from torch.distributed.tensor import distribute_tensor  # here: it is not in every build of torch

        return distribute_tensor(stored, own.device_mesh, own.placements)  # type: ignore[attr-defined]

    pairs = zip(state["averages"], ema.averages, strict=False)  # loading says what else is wrong
    averages = [{name: like(x, average.get(name)) for name, x in stored.items()} for stored, average in pairs]
    return {**state, "averages": averages}


def progress(ema: EMA) -> dict[str, Any]:
    """All of a state but the averages."""
    return {
        **{_public(count): getattr(ema, count) for count in _COUNTS},
        "pending": ema.pending,
        "noise": ema._noise.get_state() if _is_rounded(ema) else None,
        "averaged": sorted(ema._treatment.averaged),
        "made_with": _made_with(ema),
    }


def encode(state: dict[str, Any]) -> Tensor:
    """A state as one tensor of bytes, for what stores nothing but tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    content = len(file.getvalue()).to_bytes(8, "little") + file.getvalue()
    return torch.frombuffer(bytearray(content.ljust(-(-len(content) // _PAGE) * _PAGE, b"\0")), dtype=torch.uint8)


def decode(encoded: Tensor) -> dict[str, Any]:
    """The state that :func:`encode` was given."""
    content = bytes(encoded.cpu().tolist())
    size = int.from_bytes(content[:8], "little")
    state: dict[str, Any] = torch.load(io.BytesIO(content[8 : 8 + size]), weights_only=True)
    return state


def _public(count: str) -> str:
    return count.removeprefix("_")


def _is_rounded(ema: EMA) -> bool:
    kinds = ema._treatment.kinds(ema._sources[0][0].places)
    return any(x.dtype == torch.bfloat16 for e in ema.averages for n, x in e.items() if kinds.get(n) == "average")


def _made_with(ema: EMA) -> dict[str, Any]:
    """What decides how the numbers go on."""
    return {
        "schedules": [schedule.describe() for schedule in ema.schedules],
        "start": ema.start,
        "buffers": ema.buffers,
        "update_every": ema.update_every,
        "shares": [share for _, share in ema._sources],
    }


@torch.no_grad()
def load(ema: EMA, state: dict[str, Any], schedule: Resume = "same") -> None:
    """Check all, then take over all.

    Raises:
        ValueError: see :meth:`EMA.load_state_dict`.
    """
    check_progress(ema, state, {"averages"}, schedule)
    if (state["noise"] is None) == _is_rounded(ema):
        raise ValueError("state must be of averages in the same dtype, got one that is bfloat16 where the other is not")
    places = ema._sources[0][0].places
    kinds = ema._treatment.kinds(places)
    late = {n for n in state["averaged"] if n in places}  # unfrozen in the run that stored, and still frozen here
    for i, (average, stored) in enumerate(zip(ema.averages, state["averages"], strict=True)):
        own = {**{n: places[n][0].read() for n in late}, **average}
        firm = {n for n in own if n in late or kinds.get(n) == "average"}
        firm |= {n for n in own if n in stored and n in places and places[n][0].is_parameter}
        given = {n: x for n, x in stored.items() if n in firm or (n not in own and kinds.get(n) != "share")}
        check_fit(given, {n: own[n] for n in firm}, f"state['averages'][{i}]")
    ema._treatment.averaged |= late
    ema._follow()
    for average, stored in zip(ema.averages, state["averages"], strict=True):
        for name, tensor in average.items():
            if name in stored and stored[name].shape == tensor.shape:  # a buffer may be a cache that grows
                local(tensor).copy_(local(stored[name]))
    take_progress(ema, state)


@torch.no_grad()
def take_over(ema: EMA, averages: Sequence[Mapping[str, Tensor]], steps: int) -> None:
    """See :meth:`EMA.take_over`."""
    require(isinstance(steps, int) and steps >= 1, "steps", steps, "an int >= 1")
    own = ema.averages
    require(len(averages) == len(own), "averages", len(averages), f"one for each of {len(own)} schedules")
    places, kinds = ema._sources[0][0].places, ema._treatment.kinds(ema._sources[0][0].places)
    needed = {n for n in own[0] if n not in kinds or kinds[n] == "average" or places[n][0].is_parameter}
    found = [{_own_name(name, own[0]): x for name, x in given.items()} for given in averages]
    for i, (given, average) in enumerate(zip(found, own, strict=True)):
        wanted = {n: x for n, x in average.items() if n in needed or n in given}
        check_fit({n: given[n] for n in wanted if n in given}, wanted, f"averages[{i}]")
    for given, average in zip(found, own, strict=True):
        for name in average.keys() & given.keys():
            local(average[name]).copy_(local(given[name]))
    ema.step = ema.seen = ema._last = ema._last_seen = steps
    ema.updates = -(-steps // ema.update_every)


def _own_name(name: str, own: dict[str, Tensor]) -> str:
    plain = without_wrappers(name)
    return plain if plain in own else plain.removeprefix("module.")


def check_progress(ema: EMA, state: dict[str, Any], more: set[str], schedule: Resume = "same") -> None:
    """Whether a state is of an EMA like this one, and has ``more`` keys than those of :func:`progress`."""
    if schedule not in ("same", "mine"):
        raise ValueError(f"schedule must be 'same' or 'mine', got {schedule!r}")
    wanted = {*map(_public, _COUNTS), "pending", "noise", "averaged", "made_with", *more}
    if state.keys() != wanted:
        raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}")
    odd = [name for name in map(_public, _COUNTS) if type(state[name]) is not int or state[name] < 0]
    if odd:
        raise ValueError(f"state must count with whole numbers, got {odd[0]}={state[odd[0]]!r}")
    own, given = _made_with(ema), state["made_with"]
    wrong = [f"{key} {given.get(key)!r} and not {own[key]!r}" for key in own if given.get(key) != own[key]]
    if len(given.get("schedules", ())) == len(own["schedules"]) and given["schedules"] != own["schedules"]:
        if schedule == "mine":
            wrong = [text for text in wrong if not text.startswith("schedules ")]
        elif len(wrong) == 1:
            wrong[0] += "; to go on with the new one all the same, load with schedule='mine'"
    if wrong:
        raise ValueError(f"state must be of an EMA like this one, got one with {'; '.join(wrong)}")


def take_progress(ema: EMA, state: dict[str, Any]) -> None:
    """Go on counting from a state that has been checked."""
    for count in _COUNTS:
        setattr(ema, count, state[_public(count)])
    ema.pending = bool(state["pending"])
    if state["noise"] is not None:
        ema._noise.set_state(state["noise"])


def snapshot(schedule: Schedule, t: int, average: dict[str, Tensor], averaged: list[str]) -> dict[str, Any]:
    """See :meth:`EMA.snapshot`."""
    if not isinstance(schedule, Power):
        raise TypeError(f"schedule must be a Power for snapshots, got {schedule!r}")
    if t == 0:
        raise RuntimeError("a snapshot before the first update has no profile: call update() first")
    tensors = {name: tensor.detach().clone() for name, tensor in average.items()}
    return {"t": t, "sigma_rel": schedule.sigma_rel, "tensors": tensors, "averaged": averaged}
