"""What server and clients hold and send: named sets of named tensors, with whole numbers or scalars beside them.

The one place where replies of clients are checked before anything is done with them is :func:`sorted_out`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyak.federated.rules.tensors import Tensors

ClientId = int | str
Sets = Mapping[str, Tensors]
Reply = tuple[ClientId, "Message"]
LARGEST = sys.float_info.max


@dataclass(frozen=True)
class State:
    """What a server, or one client, keeps from round to round.

    Args:
        sets: named sets of tensors, such as ``arrays`` (the weights), ``momentum``, ``control``.
        counters: whole numbers, such as ``round``.
    """

    sets: Sets
    counters: Mapping[str, int] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries of tensors and numbers, which ``torch.load`` takes with ``weights_only=True``."""
        return {"sets": {s: dict(tensors) for s, tensors in self.sets.items()}, "counters": dict(self.counters)}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any]) -> State:
        """What :meth:`state_dict` made."""
        return cls({s: dict(tensors) for s, tensors in saved["sets"].items()}, dict(saved["counters"]))


@dataclass(frozen=True)
class Message:
    """What is sent, to clients or by one.

    Args:
        round: the round that it belongs to.
        sets: named sets of tensors.
        scalars: numbers, such as ``lr`` (to clients), ``examples`` and ``steps`` (from clients).
    """

    round: int
    sets: Sets
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregated:
    """What a server made of the replies of a round.

    Args:
        state: its new state.
        accepted: the clients whose replies were used, in order.
        dropped: the others, with the reason.
    """

    state: State
    accepted: list[ClientId]
    dropped: dict[ClientId, str]


def fault_of(tensors: object, like: Mapping[str, Tensor], finite: bool = True) -> str:
    """What is wrong with a set that should be as another in names, shapes and dtypes; empty if nothing is."""
    if not isinstance(tensors, Mapping):
        return f"is {type(tensors).__name__}, not a dictionary of tensors"
    if set(tensors) != set(like):
        return f"has the names {sorted(map(str, tensors))}, not {sorted(like)}"
    for name, want in like.items():
        got = tensors[name]
        if not isinstance(got, Tensor):
            return f"has {type(got).__name__} as {name!r}, not a tensor"
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"has {name!r} as {tuple(got.shape)} {got.dtype}, not {tuple(want.shape)} {want.dtype}"
        if finite and not _finite(got):
            return f"has values in {name!r} that are not finite"
    return ""


def _finite(tensor: Tensor) -> bool:
    """A finite sum has finite parts, and costs a quarter; other sums can still be of finite numbers."""
    return not tensor.is_floating_point() or math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def sorted_out(
    replies: Sequence[Reply],
    like: Mapping[str, Tensors],
    round: int,
    owner: str,
    also: Callable[[Message], str] = lambda message: "",
) -> tuple[list[Reply], dict[ClientId, str]]:
    """The replies that can be used, and the reasons against the others, by client.

    Args:
        replies: client and message, for each.
        like: for each set that a reply must have, tensors of the right names, shapes and dtypes.
        round: the number that a reply must carry.
        owner: who asks, for errors.
        also: what a rule has against a reply that is otherwise in order; empty for nothing.

    Raises:
        ValueError: no replies, a client twice, or none that can be used; says why.
    """
    if not replies:
        raise ValueError(f"{owner}: replies must be at least one, got none")
    ids = [client for client, _ in replies]
    if len(set(ids)) != len(ids):
        twice = sorted({str(i) for i in ids if ids.count(i) > 1})
        raise ValueError(f"{owner}: replies must be one a client, got several of {twice}")
    faults = {client: _fault(message, like, round) or also(message) for client, message in replies}
    dropped = {client: fault for client, fault in faults.items() if fault}
    if len(dropped) == len(replies):
        raise ValueError(f"{owner}: no reply can be used: {dropped}")
    return [reply for reply in replies if reply[0] not in dropped], dropped


def _fault(message: object, like: Mapping[str, Tensors], round: int) -> str:
    if not isinstance(message, Message):
        return f"the reply is {type(message).__name__}, not a Message"
    if message.round != round:
        return f"the reply is of round {message.round}, not {round}"
    if set(message.sets) != set(like):
        return f"the reply has the sets {sorted(map(str, message.sets))}, not {sorted(like)}"
    if fault := _scalars_fault(message.scalars):
        return fault
    for name, want in like.items():
        if fault := fault_of(message.sets[name], want):
            return f"{name} {fault}"
    return ""


def _scalars_fault(scalars: object) -> str:
    if not isinstance(scalars, Mapping):
        return f"the scalars are {type(scalars).__name__}, not a dictionary"
    for name, value in scalars.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
            return f"{name} is {value!r}, not a positive number"
    return ""
