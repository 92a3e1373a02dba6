"""Averaged tensors beside a model, to be run, put in the model's place, and read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyak.teachers.copies import Teacher, replicate
from polyak.teachers.exchange import exchangeable, swap
from polyak.teachers.follow import Anchors, follow, sources_of
from polyak.teachers.matching import unwrap
from polyak.teachers.replica import Replica
from polyak.teachers.treatment import Treatment


class Averages:
    """One or several averages of a model's tensors; what moves them is :class:`polyak.teachers.EMA`.

    Args:
        model: the online model.
        anchors: see :class:`polyak.teachers.EMA`, as are ``teacher`` and what ``treatment`` is made of.
        teacher: whether and what modules the averages are in.
        count: how many averages there are.
        several: whether ``teacher`` may be a sequence.
        treatment: what becomes of which tensor.
    """

    def __init__(
        self, model: nn.Module, anchors: Anchors, teacher: Teacher, count: int, several: bool, treatment: Treatment
    ) -> None:
        self.model = model
        self.is_swapped = False
        """Whether the averages are in a model's place, see :meth:`swapped`."""
        self._treatment = treatment
        online = Replica(model)
        self._sources = sources_of(online, anchors)
        self._replicas = replicate(model, online.places, teacher, count, several, treatment)
        treatment.remember(online.places)
        treatment.stamp(online.places)

    @property
    def module(self) -> nn.Module:
        """The averaged model, the first if there are several; in evaluation mode until you say otherwise.

        Raises:
            RuntimeError: if it was made with ``teacher=None``.
        """
        return self.modules[0]

    @property
    def modules(self) -> list[nn.Module]:
        """The averaged models, one for each schedule."""
        if any(r.module is None for r in self._replicas):
            raise RuntimeError("this EMA has no module, only tensors: make it with teacher='copy' or a module")
        return [r.module for r in self._replicas if r.module is not None]

    @property
    def averages(self) -> list[dict[str, Tensor]]:
        """The averaged tensors by name, one dictionary for each schedule; not copies."""
        return [replica.renewed().read() for replica in self._replicas]

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the (first) averaged model without gradients."""
        return self.module(*args, **kwargs)

    def _refuse_while_swapped(self, what: str) -> None:
        if self.is_swapped:
            raise RuntimeError(f"{what}() inside of swapped(): the online and the averaged model are exchanged")

    def _follow(self) -> None:
        """Take up the models as they are now."""
        self._sources, self._replicas = follow(self._sources, self._replicas, self._treatment)

    @contextmanager
    def swapped(self, model: nn.Module | None = None, which: int = 0) -> Iterator[nn.Module]:
        """Put the averages into a model, and on leaving, also by an exception, take them out again.

        Memory is exchanged, not copied; only tensors of another dtype or device, and shards, are converted, and the
        model's own kept aside. Meanwhile the averaged model holds what the model held.

        Args:
            model: ``None`` for the online model, or another with the same tensors.
            which: index of the average.

        Yields:
            The model.

        Raises:
            RuntimeError: if it is entered twice.
            ValueError: if the tensors do not fit.
        """
        self._refuse_while_swapped("swapped")
        self._follow()
        model = self.model if model is None else model
        replica = Replica(model)
        names = exchangeable(replica, self._replicas[which], self._treatment)
        self.is_swapped = True
        try:
            with swap(replica, self._replicas[which], names):
                yield model
        finally:
            self.is_swapped = False

    def model_state_dict(self, which: int = 0) -> dict[str, Any]:
        """What ``model.state_dict()`` would be with the averages in it, to be stored or shipped.

        Keys, dtypes and devices are the model's, without what DistributedDataParallel and ``torch.compile`` prepend.
        Tensors are copies.

        Args:
            which: index of the average.

        Raises:
            RuntimeError: inside of :meth:`swapped`.
        """
        with self.swapped(which=which):
            return copy.deepcopy(unwrap(self.model).state_dict())
