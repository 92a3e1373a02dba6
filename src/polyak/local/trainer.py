"""Local learning in three lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from polyak.local.auxiliary import Auxiliary, Criterion
from polyak.local.backward import LocalOutcome, local_backward, pair, require_factory
from polyak.local.listing import Layers
from polyak.local.network import Cuts, LocalNetwork

Loader = Iterable[tuple[Tensor, Tensor]]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Epoch:
    """How an epoch went, means over its samples.

    Attributes:
        loss: of the last block.
        losses: of the blocks before it.
        accuracy: share of samples whose largest logit was the target; NaN where targets are no class numbers.
    """

    loss: float
    losses: tuple[float, ...]
    accuracy: float


class LocalTrainer:
    """Trains a model in gradient-isolated blocks.

    Example::

        trainer = LocalTrainer(model, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9), num_blocks=4, auxiliary=MAN())
        trainer.fit(loader, epochs=10)
        torch.save(trainer.model.state_dict(), "model.pt")  # the plain network

    The cuts and auxiliary networks are made from the first batch, or by :meth:`build`. For anything that is not here,
    write the loop yourself around :func:`local_backward`.

    Args:
        model: see :class:`LocalNetwork`, as are ``num_blocks``, ``auxiliary``, ``cuts`` and ``layers``.
        optimizer: a function of the parameters that gives the optimizer of them, so also a class with its options
            bound by :func:`functools.partial`.
        num_blocks: number :math:`K` of blocks.
        auxiliary: the recipe for the auxiliary networks; :class:`MAN` by default.
        cuts: where to cut.
        layers: the layers of a model that :func:`layers` does not know.
        scheduler: a function of the optimizer that gives its learning-rate scheduler, stepped after each epoch.
        criterion: ``criterion(logits, targets)``, a scalar.
        accumulate: batches to a step, >= 1; their gradients are averaged.
        autocast: dtype of mixed precision, ``None`` for none. With float16 a gradient scaler is used.

    Attributes:
        model: the plain network.
        network: the cut network; ``None`` until it is built. So are ``optimizer`` and ``scheduler``.
        history: an :class:`Epoch` for each epoch.

    Raises:
        TypeError: if ``optimizer`` or ``scheduler`` is one already, and no function that makes one.
        ValueError: if ``accumulate`` is below 1, and what :class:`LocalNetwork` raises, when it is built.
    """

    def __init__(
        self,
        model: nn.Module | list[nn.Module],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        num_blocks: int | None = None,
        auxiliary: Auxiliary | None = None,
        *,
        cuts: Cuts = "balanced",
        layers: Layers | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        criterion: Criterion = F.cross_entropy,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
    ) -> None:
        require_factory("optimizer", optimizer)
        require_factory("scheduler", scheduler)
        if accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {accumulate!r}")
        self.model = model if isinstance(model, nn.Module) else nn.Sequential(*model)
        self.network: LocalNetwork | None = None
        self.optimizer: Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        self.history: list[Epoch] = []
        self._given = model
        self._options: dict[str, Any] = {
            "num_blocks": num_blocks, "auxiliary": auxiliary, "cuts": cuts, "layers": layers,
        }  # fmt: skip
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self._criterion, self._accumulate, self._autocast = criterion, accumulate, autocast
        self._scaler: torch.amp.GradScaler | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def build(self, inputs: Tensor) -> LocalNetwork:
        """Cut the network and make auxiliary networks, optimizer and scheduler, if that has not been done.

        Args:
            inputs: a batch of at least 2 samples.
        """
        if self.network is None:
            network = LocalNetwork(self._given, example=inputs.to(self.device), **self._options)
            optimizer = self._make_optimizer(list(network.trainable_parameters()))
            self.scheduler = None if self._make_scheduler is None else self._make_scheduler(optimizer)
            if self._autocast is torch.float16:
                self._scaler = torch.amp.GradScaler(self.device.type)
            self.network, self.optimizer, self.model = network, optimizer, network.model
        return self.network

    def fit(self, loader: Loader, epochs: int) -> list[Epoch]:
        """Train for some more epochs.

        Args:
            loader: gives (inputs, targets), anew for each epoch.
            epochs: how many, >= 1.

        Returns:
            What the epochs added to ``history``.

        Raises:
            TypeError: if a batch is no pair of tensors.
            ValueError: if ``epochs`` is below 1 or an epoch has no batch.
        """
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs!r}")
        for _ in range(epochs):
            self.history.append(self._epoch(loader))
            if self.scheduler is not None:
                self.scheduler.step()
        return self.history[-epochs:]

    def _epoch(self, loader: Loader) -> Epoch:
        samples, right, sums = 0, 0.0, torch.zeros(0)
        for group in self._groups(loader):
            for outcome, targets in self._step(group):
                n = len(targets)
                values = torch.stack([outcome.loss, *outcome.losses]).detach().float() * n
                sums = values if samples == 0 else sums + values
                right += _right(outcome.logits, targets)
                samples += n
        if samples == 0:
            raise ValueError("loader must give at least one batch, got none")
        last, *local = (sums / samples).tolist()
        return Epoch(last, tuple(local), right / samples)

    def _groups(self, loader: Loader) -> Iterator[list[Pair]]:
        pairs = (pair(batch, "loader") for batch in loader)
        batches = ((x.to(self.device), y.to(self.device)) for x, y in pairs)
        while group := list(islice(batches, self._accumulate)):
            yield group

    def _step(self, group: list[Pair]) -> list[tuple[LocalOutcome, Tensor]]:
        """One optimizer step from one or several batches."""
        network = self.build(group[0][0])
        assert self.optimizer is not None
        network.train()
        self.optimizer.zero_grad()
        done = []
        for i, (x, y) in enumerate(group, 1):
            with self._precision():
                outcome = local_backward(
                    network, x, y, criterion=self._criterion, scaler=self._scaler, weight=1 / len(group),
                    last=i == len(group),
                )  # fmt: skip
            done.append((outcome, y))
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        return done

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)

    @torch.no_grad()
    def accuracy(self, loader: Loader) -> float:
        """Share of samples that the plain model, in evaluation mode, classifies right.

        Raises:
            ValueError: if there are no samples.
        """
        training = self.model.training
        self.model.eval()
        right, samples = 0.0, 0
        try:
            for x, y in (pair(batch, "loader") for batch in loader):
                right += _right(self.model(x.to(self.device)), y.to(self.device))
                samples += len(y)
        finally:
            self.model.train(training)
        if samples == 0:
            raise ValueError("loader must give at least one batch, got none")
        return right / samples

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on: weights, averages, optimizer, history.

        Raises:
            RuntimeError: if nothing has been built yet.
        """
        network, optimizer = self._built()
        return {
            "cuts": list(network.cuts),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "history": [vars(epoch) for epoch in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state: what :meth:`state_dict` gave, for a network with the same cuts and auxiliary networks.

        Raises:
            RuntimeError: if nothing has been built yet; call :meth:`build` with a batch first.
            ValueError: if the checkpoint is of another number of blocks, other cuts, other auxiliary networks or
                another optimizer. Nothing has been changed then.
        """
        network, optimizer = self._built()
        cuts = tuple(state["cuts"])
        if len(cuts) != network.num_blocks:
            raise ValueError(f"the checkpoint has {len(cuts)} blocks, this network {network.num_blocks}")
        if cuts != network.cuts:
            raise ValueError(f"the checkpoint has the cuts {list(cuts)}, this network {list(network.cuts)}")
        network.check_state(state["network"])
        for name, here in (("scheduler", self.scheduler), ("scaler", self._scaler)):
            if (state[name] is None) != (here is None):
                has = "a" if here is None else "no"
                raise ValueError(f"the checkpoint has {has} {name}, unlike this trainer")
        _require_same_optimizer(state["optimizer"], optimizer.state_dict())
        optimizer.load_state_dict(state["optimizer"])
        network.load_state_dict(state["network"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])
        self.history = [Epoch(e["loss"], tuple(e["losses"]), e["accuracy"]) for e in state["history"]]

    def _built(self) -> tuple[LocalNetwork, Optimizer]:
        if self.network is None or self.optimizer is None:
            raise RuntimeError("the network has not been cut yet; call build(inputs) with a batch first")
        return self.network, self.optimizer


def _right(logits: Tensor, targets: Tensor) -> float:
    if targets.is_floating_point() or targets.shape != logits.shape[:1]:
        return float("nan")
    return float((logits.argmax(1) == targets).sum())


def _require_same_optimizer(given: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse the state of an optimizer with other groups or options; torch finds out when it is too late."""

    def groups(state: Mapping[str, Any]) -> list[tuple[int, list[str]]]:
        return [(len(g["params"]), sorted(g.keys() - {"params", "initial_lr"})) for g in state["param_groups"]]

    if groups(given) != groups(here):
        raise ValueError(f"the checkpoint is of another optimizer: groups {groups(given)}, here {groups(here)}")
