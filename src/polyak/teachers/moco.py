"""Momentum contrast: MoCo v1 (arXiv:1911.05722) and v2 (arXiv:2003.04297)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from polyak.memory._check import require
from polyak.teachers import checkpoint, ranks
from polyak.teachers.batchnorm import buffers_kept
from polyak.teachers.copies import deep_copy
from polyak.teachers.ema import EMA
from polyak.teachers.losses import first_is_right, info_nce_logits
from polyak.teachers.queue import Queue
from polyak.teachers.schedules import Schedule


class MoCoOutput(NamedTuple):
    """What a forward gives: back-propagate ``loss``."""

    loss: Tensor
    logits: Tensor
    """``(n, 1 + K)`` over the temperature, the right answer at 0; of a symmetric loss those of the first direction."""


class MoCo(nn.Module):
    r"""An encoder trained to tell the other view of an image from a queue of keys that a slow copy of it made.

    For views :math:`x_q, x_k` of the same images, with :math:`q = n(f_q(x_q))`, :math:`k = n(f_k(x_k))` of unit length:

    .. math:: \theta_k \leftarrow m\,\theta_k + (1-m)\,\theta_q, \qquad
        L = -\log\frac{e^{q\cdot k/T}}{e^{q\cdot k/T} + \sum_{j \in Q} e^{q\cdot m_j/T}}

    and then :math:`k` enters the queue :math:`Q`. Each forward in training mode does all of this; step an optimizer of
    ``moco.encoder`` alone. With gradients accumulated call ``moco.ema.attach(optimizer, "before_forward")``: then
    :math:`f_k` moves once a step, while the queue takes every batch.

    Args:
        encoder: :math:`f_q`, ``(n, ...) -> (n, dim)``; see :func:`projection_head` for the head of v2. Its copy
            :math:`f_k` is ``moco.key_encoder``, with BatchNorm statistics of its own.
        dim: size of the encoder's output.
        queue_size: :math:`K`, at least the batch (of all ranks).
        momentum: :math:`m`, a number in [0, 1] or a schedule. The paper: 0.99 to 0.9999 good, 0 fails.
        temperature: :math:`T` > 0; v1 0.07, v2 0.2.
        bn_groups: parts of a batch that BatchNorm sees one by one; 1 or a divisor of the batch. The queries' parts
            are consecutive, the keys' shuffled: on one device what shuffling BN does over several.
        symmetric: average the losses of both directions; only the keys of ``x_k`` enter the queue.

    Raises:
        ValueError: if an argument is out of range, or ``encoder`` cannot be copied; in a forward on inputs, queries
            (so mostly where weights are not) or keys that are not finite, on batches that differ, over ranks too,
            outputs of another shape, or a batch larger than the queue.
        FloatingPointError: in a forward, if a weight is not finite that the queries do not depend on.

    What one rank's batch is refused for, all ranks refuse. A refused forward leaves weights, the averages' counts,
    BatchNorm's statistics and the queue as they were, with one exception: where finite weights, inputs and queries
    make keys that are not, the key encoder has taken its step, which is then counted (to undo it, a copy of the encoder
    would have to be kept). Attached to an optimizer, it may have taken the step that was due before any refusal but
    that of inputs and batches.

    Differs from the authors' code: the queue wraps, so its size need not be a multiple of the batch; it runs without
    torch.distributed; the queue lies as ``(K, dim)``. Under torch.distributed keys are shuffled over the ranks if
    the encoder has BatchNorm.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int = 128,
        queue_size: int = 65536,
        momentum: float | Schedule = 0.999,
        temperature: float = 0.2,
        bn_groups: int = 1,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        require(temperature > 0.0, "temperature", temperature, "greater than 0")
        require(isinstance(queue_size, int) and queue_size >= 1, "queue_size", queue_size, "an int >= 1")
        require(isinstance(bn_groups, int) and bn_groups >= 1, "bn_groups", bn_groups, "an int >= 1")
        self.dim, self.temperature, self.bn_groups, self.symmetric = dim, temperature, bn_groups, symmetric
        self.encoder = encoder
        self.key_encoder = deep_copy(encoder)
        self.queue = Queue(queue_size, dim)
        self.ema = EMA(encoder, momentum, start="teacher", buffers="keep", teacher=self.key_encoder)
        self._resumed: checkpoint.Resume = "same"
        self.keys_per_image = 1
        """How many keys of each image enter the queue."""
        self._has_batch_norm = any(isinstance(m, _BatchNorm) for m in encoder.modules())

    def forward(self, x_q: Tensor, x_k: Tensor) -> MoCoOutput:
        """The loss of a batch of two views ``(n, ...)`` each; in training mode keys' encoder and queue move on."""
        self._check_batch(x_q, x_k)
        if not self.training:
            return self._losses(self.queries(x_q), self.keys(x_k), x_q, x_k)[0]
        with buffers_kept(self.encoder, self.key_encoder):
            q = self.queries(x_q)
            self._check_finite(queries=q)
            if not self.ema.attached:
                self.ema.update()
            found, entering = self._losses(q, self.keys(x_k), x_q, x_k)
            self.queue.enqueue(entering)
        return found

    def _losses(self, q: Tensor, k: Tensor, x_q: Tensor, x_k: Tensor) -> tuple[MoCoOutput, Tensor]:
        """The loss of queries and keys of the two views, and the keys that enter the queue."""
        found = self._contrast(q, k)
        if self.symmetric:
            other = self._contrast(self.queries(x_k), self.keys(x_q))
            found = MoCoOutput((found.loss + other.loss) / 2, found.logits)
        return found, k

    def _contrast(self, q: Tensor, k: Tensor) -> MoCoOutput:
        logits = self._logits(q, k)
        return MoCoOutput(first_is_right(logits), logits)

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        return info_nce_logits(q, k, self.queue.read(), self.temperature)

    def _check_batch(self, x_q: Tensor, x_k: Tensor) -> None:
        told = ranks.share([len(x_q), len(x_k)], x_k.device)
        of_q, of_k = [rows for rows, _ in told], [rows for _, rows in told]
        require(of_q == of_k, "x_k", f"{of_k} rows", f"as many as x_q has ({of_q})")
        require(len(set(of_k)) == 1, "the batch", of_k, "of one size on all ranks")
        new = self.keys_per_image * sum(of_k)
        require(new <= self.queue.size, "the keys of a batch", new, f"at most queue_size ({self.queue.size})")
        require(len(x_k) % self.bn_groups == 0, "the batch", len(x_k), f"a multiple of bn_groups ({self.bn_groups})")
        self._check_finite(x_q=x_q, x_k=x_k)

    @torch.no_grad()
    def _check_finite(self, **given: Tensor) -> None:
        """Asked of all ranks, so that either all go on or none."""
        wrong = torch.stack([~x.isfinite().all() for x in given.values()]).tolist()
        for rank, found in enumerate(ranks.share(list(map(int, wrong)), next(iter(given.values())).device)):
            bad = [name for name, is_bad in zip(given, found, strict=True) if is_bad]
            require(not bad, " and ".join(bad), f"NaN or infinity on rank {rank}", "finite")

    def queries(self, x: Tensor) -> Tensor:
        """Encode as queries, with gradients: ``(n, dim)`` of unit length."""
        return self._encode(self.encoder, x)

    @torch.no_grad()
    def keys(self, x: Tensor) -> Tensor:
        """Encode as keys: ``(n, dim)`` of unit length, in the order of ``x``.

        Where BatchNorm could tell a key by its batch, the rows are shuffled before and sorted after.
        """
        rank, world = ranks.world()
        if not self._has_batch_norm or world * self.bn_groups == 1:
            return self._encode(self.key_encoder, x)
        n, rows = len(x), ranks.sizes(x)
        everyone = ranks.gather(x, rows)
        order = self.permutation(len(everyone), x.device)
        shuffled = self._encode(self.key_encoder, everyone[order[rank * n : (rank + 1) * n]])
        return ranks.gather(shuffled, rows)[order.argsort()[rank * n : (rank + 1) * n]]

    def permutation(self, rows: int, device: torch.device) -> Tensor:
        """The order in which keys are encoded, alike on all ranks; drawn on the first."""
        order = torch.randperm(rows, device=device)
        if ranks.world()[1] > 1:
            torch.distributed.broadcast(order, 0)
        return order

    def _encode(self, encoder: nn.Module, x: Tensor) -> Tensor:
        groups = x.chunk(self.bn_groups) if self._has_batch_norm else (x,)
        out = torch.cat([encoder(group) for group in groups]) if len(groups) > 1 else encoder(x)
        right = isinstance(out, Tensor) and out.shape == (len(x), self.dim)
        require(right, "encoder's output", tuple(getattr(out, "shape", ())), f"of shape {(len(x), self.dim)}")
        if bool((out.detach() == 0).all(dim=1).any()):
            warnings.warn("an output of the encoder is zero, which has no direction", RuntimeWarning, stacklevel=4)
        return normalize(out, dim=1)

    def get_extra_state(self) -> Tensor:
        """The counts of the keys' encoder's average, as a tensor, which is all that some formats store."""
        return checkpoint.encode(checkpoint.progress(self.ema))

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting; refuses what another momentum made."""
        counts = checkpoint.decode(state)
        checkpoint.check_progress(self.ema, counts, set(), self._resumed)
        checkpoint.take_progress(self.ema, counts)

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
        *,
        schedule: checkpoint.Resume = "same",
    ) -> Any:
        """As ``torch.nn.Module``; what another momentum made is refused, or with ``schedule="mine"`` gone on with.

        Raises:
            ValueError: if the momentum differs from the stored one and ``schedule`` is ``"same"``.
        """
        self._resumed = schedule
        try:
            return super().load_state_dict(state_dict, strict, assign)
        finally:
            self._resumed = "same"


def projection_head(features: int, dim: int = 128, mlp: bool = True) -> nn.Module:
    """The last layer of an encoder: ``Linear-ReLU-Linear`` of v2, or with ``mlp=False`` the ``Linear`` of v1.

    Args:
        features: width of the backbone, and of the hidden layer.
        dim: size of the output.
        mlp: whether there is a hidden layer.
    """
    if not mlp:
        return nn.Linear(features, dim)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))
