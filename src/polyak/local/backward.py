"""One training iteration of a network of gradient-isolated blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from polyak.local.auxiliary import AuxiliaryNet, Batch, Criterion
from polyak.local.network import LocalNetwork
from polyak.local.reduce import GradientMean

DONE = (
    "the backward pass has been done: local_backward() runs it block by block, inside the forward pass. "
    "Go on with optimizer.step()"
)


@dataclass(frozen=True)
class LocalOutcome:
    """What :func:`local_backward` leaves: values only, all graphs are gone.

    Calling ``backward()`` on it, or on one of its losses, raises a ``RuntimeError`` that says that this has been done.

    Attributes:
        loss: the loss of the last block, a scalar.
        losses: the local losses of the blocks before it, scalars.
        logits: the output of the network.
    """

    loss: Tensor
    losses: tuple[Tensor, ...]
    logits: Tensor

    def backward(self) -> NoReturn:
        """Explain that there is nothing left to do."""
        raise RuntimeError(DONE)


class _Spent(torch.autograd.Function):
    """The value of a loss whose backward has been done."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, anchor: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise RuntimeError(DONE)


def local_backward(
    network: LocalNetwork | DistributedDataParallel,
    inputs: Tensor,
    targets: Tensor,
    *,
    criterion: Criterion = F.cross_entropy,
    scaler: torch.amp.GradScaler | None = None,
    weight: float = 1.0,
    last: bool = True,
) -> LocalOutcome:
    r"""Forward and backward, block by block; the gradients are then there for any optimizer.

    For each block: forward, local loss, backward at once, which frees what the block saved; its output goes on
    detached. The last block gets the loss of the network. Then averages (:class:`MAN`) move, towards weights from
    before the optimizer step that follows. The loop around it is the usual one::

        optimizer.zero_grad()
        outcome = local_backward(network, images, labels)
        optimizer.step()

    * **Mixed precision**: call it under :class:`torch.autocast`, and with the ``scaler`` for float16; backward runs
      outside of autocast. A step that the scaler will skip moves no average.
    * **Accumulation**: ``last=False`` for all micro-batches but the last. Averages move once, and gradients add up;
      ``weight=1/n`` makes them a mean over n micro-batches.
    * **DistributedDataParallel**: pass the wrapped ``LocalNetwork``. Gradients are averaged over the ranks block by
      block while the next block computes; with ``last=False``, or under ``no_sync()``, they are not. Each rank keeps
      its own running statistics of batch normalizations; save the model of one rank, or convert the model to
      ``SyncBatchNorm`` before it is cut (blocks hold the modules that the model had then; afterwards is refused).

    Args:
        network: the network, or a ``DistributedDataParallel`` around it.
        inputs: a batch, (N, ...).
        targets: what ``criterion`` compares with.
        criterion: ``criterion(logits, targets)``, a scalar; also judges auxiliary classifiers.
        scaler: multiplies each loss for its backward pass; ``None`` for no scaling.
        weight: factor of every loss in its backward pass; the losses returned are without it.
        last: whether the optimizer's step follows.

    Returns:
        Losses and logits. Nothing in it can be differentiated.

    Raises:
        TypeError: if ``network`` is no ``LocalNetwork``.
        ValueError: if a batch of one meets batch normalization, or an auxiliary network refuses the batch; if
            targets in host memory are no class numbers of the network and ``criterion`` is
            :func:`~torch.nn.functional.cross_entropy` or :class:`~torch.nn.CrossEntropyLoss` (on other devices the
            check would wait for them). Nothing has been changed then.
        RuntimeError: if gradients are disabled; if modules of the model were replaced after it was cut.
    """
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    if not isinstance(inner, LocalNetwork):
        raise TypeError(
            f"network must be a LocalNetwork, or DistributedDataParallel of one, got {type(inner).__name__}"
        )
    if not torch.is_grad_enabled():
        raise RuntimeError("local_backward() computes gradients; do not call it under torch.no_grad()")
    batch = Batch(inputs, targets, criterion)
    nets = cast(Sequence[AuxiliaryNet], inner.auxiliaries)
    check(inner, batch)
    mean = GradientMean.of(network) if last else None
    losses: list[Tensor] = []
    x = inputs
    for block, net in zip(inner.blocks, nets, strict=False):
        x, loss = run_block(block, net, x, batch, scaler, weight)
        losses.append(loss)
        if mean is not None:
            mean.start([*block.parameters(), *net.parameters()])
    x, loss = run_block(inner.blocks[-1], None, x, batch, scaler, weight)
    if mean is not None:
        mean.start(inner.blocks[-1].parameters())
        mean.wait()
    if last:
        finish(nets, inner, scaler)
    return LocalOutcome(spent(loss), tuple(spent(value) for value in losses), x)


def pair(batch: Any, what: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of what ``what`` gave.

    Raises:
        TypeError: if it is no pair of tensors; says what it is.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch):
        return batch[0], batch[1]
    got = f"a dictionary of {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    if isinstance(batch, (tuple, list)):
        got += f" of {', '.join(type(x).__name__ for x in batch)}"
    raise TypeError(
        f"{what} must give pairs of tensors (inputs, targets), got {got}; for others write the loop yourself, around "
        "local_backward()"
    )


def require_factory(name: str, made: object) -> None:
    """Refuse what has been made in place of a function that makes it.

    Raises:
        TypeError: in that case.
    """
    if made is not None and not callable(made):
        example = "partial(torch.optim.SGD, lr=0.1)" if name == "optimizer" else "partial(StepLR, step_size=10)"
        raise TypeError(f"{name} must be a function that makes one, such as {example}, got a {type(made).__name__}")


def check(network: LocalNetwork, batch: Batch) -> None:
    """Refuse a batch that cannot be trained on, before anything runs.

    Raises:
        ValueError, RuntimeError: see :func:`local_backward`.
    """
    network.check_modules()
    network.check_batch(batch.inputs)
    _check_labels(network.num_classes, batch)
    for net in network.auxiliaries:
        cast(AuxiliaryNet, net).check(batch)


def _check_labels(num_classes: int | None, batch: Batch) -> None:
    """Cross entropy refuses labels when blocks have moved their running statistics, and gradients, already."""
    targets, criterion = batch.targets, batch.criterion
    if type(criterion) is nn.CrossEntropyLoss:  # what a subclass takes only it knows
        ignored = criterion.ignore_index
    elif criterion is F.cross_entropy:
        ignored = -100
    else:
        return
    if num_classes is None or targets.is_floating_point() or targets.ndim != 1:
        return
    if len(targets) != len(batch.inputs):
        raise ValueError(f"targets must be {len(batch.inputs)} class numbers, as many as inputs, got {len(targets)}")
    if targets.device.type == "cpu":
        odd = targets[((targets < 0) | (targets >= num_classes)) & (targets != ignored)]
        if len(odd):
            raise ValueError(
                f"targets must be class numbers from 0 to {num_classes - 1}, or {ignored} to be ignored, got {odd[0]}"
            )


def run_block(
    block: nn.Module,
    net: AuxiliaryNet | None,
    x: Tensor,
    batch: Batch,
    scaler: torch.amp.GradScaler | None,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of one block; its output and its loss, both detached. ``net=None``: the last block.

    Where nothing in a block and its auxiliary network is trained, there is no backward to do.
    """
    if net is not None:
        net.begin()
    out = block(x)
    loss = batch.criterion(out, batch.targets) if net is None else net.loss(net(out), batch)
    device = loss.device.type
    # What was computed under autocast is differentiated outside of it, as PyTorch asks.
    outside = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    if loss.requires_grad:
        with outside:
            weighted = loss if weight == 1.0 else weight * loss
            (weighted if scaler is None else scaler.scale(weighted)).backward()
    return out.detach(), loss.detach()


def finish(nets: Sequence[AuxiliaryNet], network: nn.Module, scaler: torch.amp.GradScaler | None) -> None:
    """Move the averages, unless the scaler is going to skip the step."""
    if scaler is not None and scaler.is_enabled() and not _finite(network):
        return
    for net in nets:
        net.finish()


def _finite(network: nn.Module) -> bool:
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = torch._foreach_norm(gradients, float("inf")) if gradients else []
    return all(torch.isfinite(torch.stack([n.float() for n in norms])).tolist()) if norms else True


def spent(loss: Tensor) -> Tensor:
    """A loss that explains itself when it is differentiated."""
    return cast(Tensor, _Spent.apply(loss, torch.empty((), requires_grad=True)))  # type: ignore[no-untyped-call]
