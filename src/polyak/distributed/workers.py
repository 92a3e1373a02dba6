"""The workers of a process group: what they tell each other, and means over those that take part.

Only ``all_reduce`` is used, which every backend has for tensors on its devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from polyak.memory.flat import flat, unflat
from polyak.optim.engine.kernels import high
from polyak.optim.engine.member import STEPS, local
from polyak.optim.engine.sharding import added_over_ranks

ProcessGroup = Any
BUCKET = 1 << 24
"""Elements that are sent at once, at most, but for a larger tensor."""


class Meeting(NamedTuple):
    """What workers found out of each other: by rank, the steps each has made and whether it takes part in a mean."""

    steps: list[int]
    taking: list[bool]
    lost: list[int]
    """Those that would take part, and hold something that is not finite."""


class Workers:
    """The ranks of a process group, each of which is one worker.

    Args:
        group: a group of torch.distributed; None: the default group, or one worker alone where there is none.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self.group = group
        there = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size(group) if there else 1
        self.rank = dist.get_rank(group) if there else 0
        if self.rank < 0:
            raise ValueError("process_group: this rank is not in it")

    def told(self, numbers: Sequence[int], like: Tensor) -> list[list[int]]:
        """What every worker says: the same count of whole numbers from each, in the order of their ranks.

        Args:
            numbers: this worker's.
            like: a tensor on the device that the group's backend sends from.
        """
        said = torch.zeros(self.size, len(numbers), dtype=torch.int64, device=local(like).device)
        said[self.rank] = torch.tensor(numbers, dtype=torch.int64)
        if self.size > 1:
            dist.all_reduce(said, group=self.group)
        found: list[list[int]] = said.tolist()
        return found

    def check_alike(self, what: str, described: object, like: Tensor, owner: str) -> None:
        """Refuse workers that describe themselves differently.

        Raises:
            ValueError: on all workers; names those that differ from the first.
        """
        refuse_others(what, [mark for (mark,) in self.told([mark_of(described)], like)], owner)

    def meet(
        self, what: str, described: object, like: Tensor, owner: str, *, steps: int, participates: bool, finite: bool
    ) -> Meeting:  # fmt: skip
        """Tell the others what this worker has made, and whether it is there and what it holds is finite.

        Raises:
            ValueError: on all workers, if they describe themselves differently; names those that differ from the first.
        """
        said = self.told([steps, participates, finite, mark_of(described)], like)
        refuse_others(what, [mark for *_, mark in said], owner)
        return Meeting(
            [made for made, *_ in said],
            [bool(here and whole) for _, here, whole, _ in said],
            [i for i, (_, here, whole, _) in enumerate(said) if here and not whole],
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Workers:
        return self  # a process group cannot be copied

    def __getstate__(self) -> dict[str, Any]:
        return {"has_default": self.group is None or self.group is dist.group.WORLD}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not state["has_default"]:
            raise RuntimeError(
                "process_group: what was made with a group of its own cannot be unpickled, which would take the "
                "default group; make it anew with process_group= and load its state_dict"
            )
        self.__dict__.update(vars(Workers()))

    @torch.no_grad()
    def mean_(self, tensors: Sequence[Tensor], takes_part: bool, count: int) -> None:
        """Put the mean over those that take part in the place of each tensor, on all workers; of halves in float32.

        Args:
            tensors: as many, of the same shapes and dtypes, on every worker; of shards the local part is meant.
            takes_part: whether this worker's count; what it holds otherwise, even NaN, enters nothing.
            count: how many workers take part, at least one.
        """
        for bucket in _buckets([local(t) for t in tensors]):
            whole = flat([t.to(high(t.dtype)) for t in bucket])
            whole = whole if takes_part else torch.zeros_like(whole)
            if self.size > 1:
                dist.all_reduce(whole, group=self.group)
            for t, mean in zip(bucket, unflat(whole.div_(count), bucket), strict=True):
                t.copy_(mean)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device, in order, up to :data:`BUCKET` elements."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    counts: dict[tuple[torch.dtype, torch.device], int] = {}
    for t in tensors:
        kind = (t.dtype, t.device)
        bucket = kinds.setdefault(kind, [])
        if bucket and counts[kind] + t.numel() > BUCKET:
            yield list(bucket)
            bucket.clear()
            counts[kind] = 0
        bucket.append(t)
        counts[kind] = counts.get(kind, 0) + t.numel()
    yield from kinds.values()


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """The sum of all squares; of sharded tensors over all of their shards. Not finite where one entry is not."""
    squares = [torch.linalg.vector_norm(local(t), dtype=torch.float64).square().reshape(1) for t in tensors]
    return float(added_over_ranks(tensors, squares))


def described(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """Names, shapes, dtypes and order of the parameters and which are trained, for :meth:`Workers.check_alike`."""
    return [
        [(tuple(p.shape), str(p.dtype), p.requires_grad) for p in group["params"]] + list(group.get("param_names", []))
        for group in groups
    ]


def options_of(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """The options of groups that are plain values, but for learning rates, which may differ, and counts of steps."""
    apart, plain = {"params", "param_names", "lr", "initial_lr", STEPS}, (bool, int, float, str, tuple, type(None))
    return [
        sorted((name, repr(value)) for name, value in group.items() if name not in apart and isinstance(value, plain))
        for group in groups
    ]


def mark_of(described: object) -> int:
    """A whole number that two descriptions share only if they are the same."""
    return int.from_bytes(hashlib.sha256(repr(described).encode()).digest()[:7], "big")


def refuse_others(what: str, marks: Sequence[int], owner: str) -> None:
    """Refuse workers whose marks differ.

    Raises:
        ValueError: names those that differ from the first.
    """
    if others := [i for i, mark in enumerate(marks) if mark != marks[0]]:
        raise ValueError(f"{owner}: {what} must be the same on all workers; those of {others} differ from worker 0's")


def check_counts(counts: Sequence[int], owner: str) -> None:
    """Refuse workers that meet at different steps.

    Raises:
        RuntimeError: names one that is apart, and where the others are.
    """
    usual = max(counts, key=list(counts).count)
    for i, count in enumerate(counts):
        if count != usual:
            raise RuntimeError(f"{owner}: worker {i} is at step {count}, others at {usual}; they must meet at one")


def words(ranks: Sequence[int]) -> str:
    """``worker 1`` or ``workers 1, 2``."""
    return f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
