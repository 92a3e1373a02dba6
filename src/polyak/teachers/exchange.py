"""Averages in a model's place for a while, and the model's own tensors back in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from polyak.teachers.matching import Place, check_fit, is_dtensor, is_plain, local
from polyak.teachers.replica import Replica
from polyak.teachers.treatment import Treatment

Undo = Callable[[], None]


def exchangeable(model: Replica, average: Replica, treatment: Treatment) -> list[str]:
    """Names of the tensors to exchange: all that are averaged, and what else both have alike.

    Frozen tensors of a class of their own stay, which have equal values anyway.

    Raises:
        ValueError: if parameters or averaged buffers do not fit.
    """
    kinds, mine, theirs = treatment.kinds(model.places), model.read(), average.read()
    own_class = {n for n, x in theirs.items() if not is_plain(x) and kinds.get(n) != "average"}
    fixed = {n for n, kind in kinds.items() if kind == "average"}
    fixed |= {n for n, where in average.places.items() if where[0].is_parameter} - own_class
    check_fit({n: x for n, x in mine.items() if n in fixed}, {n: x for n, x in theirs.items() if n in fixed}, "model")
    alike = {n for n in mine.keys() & theirs.keys() - own_class if mine[n].shape == theirs[n].shape}
    return [n for n in mine if n in fixed | alike]


@contextmanager
def swap(replica: Replica, other: Replica, names: list[str]) -> Iterator[None]:
    """Exchange tensors of two replicas by name, and exchange them back in the end, whatever happens."""
    undo: list[Undo] = []
    try:
        with torch.no_grad():
            for name in names:
                undo.append(_exchange(replica.places[name], other.places[name]))
        _forget_computed()
        yield
    finally:
        replica.reshard()
        with torch.no_grad():
            for back in reversed(undo):
                back()
        _forget_computed()


def _exchange(places: list[Place], others: list[Place]) -> Undo:
    """Exchange the memory of two tensors; where dtype or device differ, or the tensor is a shard, lend a copy.

    All that can fail, for want of memory, comes before anything is changed.
    """
    mine, theirs = places[0].read(), others[0].read()
    if is_dtensor(mine):  # what FSDP2 gathers is this memory
        before = local(mine).clone()
        local(mine).copy_(local(theirs))
        return lambda: _put_back(places[0], before)
    here, there = mine.data, theirs.data
    if mine.dtype != theirs.dtype or mine.device != theirs.device:
        _set(places, there.to(mine.device, mine.dtype))
        return lambda: _set(places, here)
    _set(places, there)
    _set(others, here)

    def back() -> None:
        # what a forward has put in the place of a buffer meanwhile is the average's
        now = places[0].store.get(places[0].key)
        _set(others, there if now is None else now.data)
        _set(places, here)

    return back


def _set(places: list[Place], memory: Tensor) -> None:
    for place in places:
        tensor = place.store.get(place.key)
        if tensor is not None:
            tensor.data = memory


def _put_back(place: Place, before: Tensor) -> None:
    local(place.read()).copy_(before)


def _forget_computed() -> None:
    """Forget what was computed from weights that have other values now and is kept by the weights' identity."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()  # of parametrize.cached(), which cannot be told to in another way
