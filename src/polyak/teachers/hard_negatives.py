"""MoCo with selected negatives and two views of the loss, after arXiv:2501.16360."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyak.memory._check import require
from polyak.teachers.losses import similarities
from polyak.teachers.moco import MoCo, MoCoOutput


class HardNegativeMoCo(MoCo):
    r"""MoCo that contrasts with the hardest keys only, from the side of the query and from that of the key.

    Of the keys :math:`m_j` in the queue those above ``upper`` are dropped as suspected to show the same class, and of
    the rest the ``n_hard`` most similar to the anchor :math:`a` kept, :math:`N(a)`:

    .. math:: \ell(a, b) = -\log\frac{e^{a\cdot b/T}}{e^{a\cdot b/T} + \sum_{j\in N(a)} e^{a\cdot m_j/T}}, \qquad
        L = \lambda_q L_q + \lambda_k L_k

    If fewer keys survive, all of them count; if none, the least similar one. Of this paper only the abstract could be
    read, and its authors have published no code: that both sides are balanced and negatives chosen by similarity is
    theirs, the forms above and every default are a reconstruction.

    Args:
        encoder: see :class:`MoCo`.
        hard_fraction: share of the queue that is kept, in (0, 1]; a quarter unless ``n_hard`` is given.
        n_hard: number of keys that are kept, >= 1; above ``queue_size`` all, with a warning. Give this or the share.
        upper: similarity above which a key is dropped, in (-1, 1]; 1 drops none, 0.9 is a suggestion.
        weight_q: :math:`\lambda_q` >= 0.
        weight_k: :math:`\lambda_k` >= 0, not both 0.
        mode: ``"swap"``: :math:`L_q = \ell(q_1, k_2)` and :math:`L_k = \ell(q_2, k_1)`; the keys of both views enter
            the queue. ``"anchor"``: :math:`L_q = \ell(q_1, k_2)` and :math:`L_k = \ell(k_2, q_1)`, the key choosing its
            own negatives; gradients reach :math:`q_1` through the positive pair.
        **options: as :class:`MoCo`, with ``queue_size`` 4096 and ``momentum`` 0.99; not ``symmetric``.

    Raises:
        ValueError: if an argument is out of range.

    ``mode="anchor", hard_fraction=1, weight_q=1, weight_k=0`` is MoCo.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hard_fraction: float | None = None,
        n_hard: int | None = None,
        upper: float = 1.0,
        weight_q: float = 0.5,
        weight_k: float = 0.5,
        mode: Literal["swap", "anchor"] = "swap",
        **options: Any,
    ) -> None:
        require(not options.get("symmetric"), "symmetric", True, "False: mode='swap' is the symmetric loss")
        if hard_fraction is not None and n_hard is not None:
            raise ValueError(f"give hard_fraction or n_hard, and not both, got {hard_fraction!r} and {n_hard!r}")
        share = 0.25 if hard_fraction is None else hard_fraction
        require(0.0 < share <= 1.0, "hard_fraction", share, "in (0, 1]")
        require(n_hard is None or (isinstance(n_hard, int) and n_hard >= 1), "n_hard", n_hard, "an int >= 1, or None")
        require(-1.0 < upper <= 1.0, "upper", upper, "in (-1, 1]")
        require(weight_q >= 0.0, "weight_q", weight_q, "at least 0")
        require(weight_k >= 0.0, "weight_k", weight_k, "at least 0")
        require(weight_q + weight_k > 0.0, "weight_q and weight_k", (weight_q, weight_k), "not both 0")
        require(mode in ("swap", "anchor"), "mode", mode, "'swap' or 'anchor'")
        super().__init__(encoder, **{"queue_size": 4096, "momentum": 0.99, **options})
        size = self.queue.size
        if n_hard is not None and n_hard > size:
            warnings.warn(f"n_hard is {n_hard}, more than queue_size ({size}): all keys count", RuntimeWarning, 2)
        self.n_hard = min(n_hard or max(1, round(share * size)), size)
        self.upper, self.mode = upper, mode
        self.weight_q, self.weight_k = weight_q, weight_k
        self.keys_per_image = 2 if mode == "swap" else 1

    def _losses(self, q: Tensor, k: Tensor, x_q: Tensor, x_k: Tensor) -> tuple[MoCoOutput, Tensor]:
        first, entering = self._contrast(q, k), k
        if self.mode == "swap":
            k_first = self.keys(x_q)
            second = self._contrast(self.queries(x_k), k_first)
            entering = torch.cat([k_first, k])
        else:
            second = self._contrast(k, q)
        return MoCoOutput(self.weight_q * first.loss + self.weight_k * second.loss, first.logits), entering

    def _logits(self, q: Tensor, k: Tensor) -> Tensor:
        bank = self.queue.read()
        kept = hard_negatives(similarities(q, bank), self.n_hard, self.upper)
        return torch.cat([(q * k).sum(1, keepdim=True), kept], dim=1) / self.temperature


def hard_negatives(similarities: Tensor, count: int, upper: float = 1.0) -> Tensor:
    """The most similar keys of each row that are not above ``upper``.

    Args:
        similarities: ``(n, K)``.
        count: how many to keep, >= 1; above ``K`` all.
        upper: similarities above are dropped; 1 or more drops none, rounding errors included.

    Returns:
        ``(n, min(count, K))``, ``-inf`` where fewer were left; at least one of each row is finite.

    Raises:
        ValueError: if ``count`` is below 1.
    """
    require(count >= 1, "count", count, "at least 1")
    dropped = similarities > upper if upper < 1.0 else torch.zeros_like(similarities, dtype=torch.bool)
    lowest = torch.zeros_like(dropped).scatter_(1, similarities.argmin(dim=1, keepdim=True), True)
    dropped = dropped & ~(lowest & dropped.all(dim=1, keepdim=True))
    kept: Tensor = similarities.masked_fill(dropped, -torch.inf).topk(min(count, similarities.shape[1]), dim=1).values
    return kept
