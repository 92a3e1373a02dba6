"""What an EMA stores, and whether what it is given fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyak.teachers.matching import check_fit, is_dtensor, local
from polyak.teachers.schedules import Power, Schedule

if TYPE_CHECKING:
    from polyak.teachers.ema import EMA

_COUNTS = ("step", "seen", "updates", "skipped", "_last", "_last_seen")


def save(ema: EMA) -> dict[str, Any]:
    """Averages, counts and what they were made with; see :meth:`EMA.state_dict`."""
    averages = [{name: tensor.detach() for name, tensor in average.items()} for average in ema.averages]
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
        "made_with": _made_with(ema),
    }


def _public(count: str) -> str:
    return count.removeprefix("_")


def _is_rounded(ema: EMA) -> bool:
    return any(tensor.dtype == torch.bfloat16 for average in ema.averages for tensor in average.values())


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
def load(ema: EMA, state: dict[str, Any]) -> None:
    """Check all, then take over all.

    Raises:
        ValueError: see :meth:`EMA.load_state_dict`.
    """
    check_progress(ema, state, {"averages"})
    if (state["noise"] is None) == _is_rounded(ema):
        raise ValueError("state must be of averages in the same dtype, got one that is bfloat16 where the other is not")
    averages = ema.averages
    for i, (average, stored) in enumerate(zip(averages, state["averages"], strict=True)):
        check_fit(stored, average, f"state['averages'][{i}]")
    for average, stored in zip(averages, state["averages"], strict=True):
        for name, tensor in average.items():
            local(tensor).copy_(local(stored[name]))
    take_progress(ema, state)


def check_progress(ema: EMA, state: dict[str, Any], more: set[str]) -> None:
    """Whether a state is of an EMA like this one, and has ``more`` keys than those of :func:`progress`."""
    wanted = {*map(_public, _COUNTS), "pending", "noise", "made_with", *more}
    if state.keys() != wanted:
        raise ValueError(f"state must have the keys {sorted(wanted)}, got {sorted(state)}")
    odd = [name for name in map(_public, _COUNTS) if type(state[name]) is not int or state[name] < 0]
    if odd:
        raise ValueError(f"state must count with whole numbers, got {odd[0]}={state[odd[0]]!r}")
    own, given = _made_with(ema), state["made_with"]
    wrong = [f"{key} {given.get(key)!r} and not {own[key]!r}" for key in own if given.get(key) != own[key]]
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
