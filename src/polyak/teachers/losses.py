"""Contrast between a query and keys: InfoNCE with one or several positives, and softened targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from polyak.memory._check import require


def info_nce_logits(q: Tensor, k: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    r"""Similarities as the logits of a classification whose right answer is 0: :math:`[q \cdot k,\ q N^\top]/T`.

    Args:
        q: queries ``(n, dim)``, of unit length.
        k: the positive key of each query, ``(n, dim)``, of unit length. Gradients go into it as well: ``detach()`` it
            unless what makes it is to be trained.
        negatives: ``(K, dim)`` for all queries alike, of any floating dtype: the widest of the three is computed in.
        temperature: :math:`T` > 0. MoCo v1 0.07, v2 0.2.

    Returns:
        ``(n, 1 + K)``.

    Raises:
        ValueError: on shapes that do not go together or a temperature that is not positive.
    """
    require(temperature > 0.0, "temperature", temperature, "greater than 0")
    require(q.ndim == 2, "q", tuple(q.shape), "of shape (n, dim)")
    require(k.shape == q.shape, "k", tuple(k.shape), f"of q's shape {tuple(q.shape)}")
    fits = negatives.ndim == 2 and negatives.shape[1] == q.shape[1]
    require(fits, "negatives", tuple(negatives.shape), f"of shape (K, {q.shape[1]})")
    return torch.cat([(q * k).sum(1, keepdim=True), similarities(q, negatives)], dim=1) / temperature


def similarities(q: Tensor, keys: Tensor) -> Tensor:
    """Products of all rows with all keys, ``(n, K)``, in the wider of their dtypes."""
    wide = torch.promote_types(q.dtype, keys.dtype)
    return q.to(wide) @ keys.to(wide).T


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float = 0.2) -> Tensor:
    r"""InfoNCE (arXiv:1807.03748), the mean of :math:`-\log\frac{e^{s_0}}{\sum_j e^{s_j}}` with the logits :math:`s`.

    Arguments and errors are those of :func:`info_nce_logits`.

    Returns:
        0-d tensor.
    """
    return first_is_right(info_nce_logits(q, k, negatives, temperature))


def first_is_right(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``(n, m)`` whose right answers are all 0."""
    return cross_entropy(logits, logits.new_zeros(logits.shape[0], dtype=torch.long))


def multi_positive_info_nce(
    logits: Tensor, positives: Tensor, denominator: Literal["all", "negatives"] = "all"
) -> Tensor:
    r"""InfoNCE with several right answers: for each positive one term, their mean for each row, the mean over rows.

    ``"all"``: :math:`-\log(e^{s_p}/\sum_j e^{s_j})`, a cross-entropy to targets that are equal on the positives
    (ALBEF's retrieval, SupCon). ``"negatives"``: :math:`-\log(e^{s_p}/(e^{s_p}+\sum_{j\notin P} e^{s_j}))`, so that
    positives do not compete (pixel contrast). With one positive a row both are InfoNCE.

    Args:
        logits: ``(n, m)``, similarities over the temperature.
        positives: bool ``(n, m)``. Rows without any are left out; if all are, the loss is 0.
        denominator: which similarities a positive competes with.

    Returns:
        0-d tensor.

    Raises:
        ValueError: on shapes that differ or another ``denominator``.
    """
    require(logits.ndim == 2, "logits", tuple(logits.shape), "of shape (n, m)")
    require(positives.shape == logits.shape, "positives", tuple(positives.shape), f"of shape {tuple(logits.shape)}")
    require(denominator in ("all", "negatives"), "denominator", denominator, "'all' or 'negatives'")
    positives = positives.bool()
    if denominator == "all":
        log_p = log_softmax(logits, dim=1)
    else:
        negatives = logits.masked_fill(positives, -torch.inf).logsumexp(dim=1, keepdim=True)
        log_p = logits - torch.logaddexp(logits, negatives)
    count = positives.sum(dim=1)
    terms = -log_p.masked_fill(~positives, 0.0).sum(dim=1) / count.clamp(min=1)
    return terms.sum() / (count > 0).sum().clamp(min=1)


def soft_targets(teacher_logits: Tensor, hard: Tensor, alpha: float) -> Tensor:
    r"""What a teacher expects, mixed with what is known: :math:`\alpha\,\mathrm{softmax}(t) + (1-\alpha)\,y` (ALBEF).

    Args:
        teacher_logits: ``(n, m)``, similarities over the temperature; no gradient goes into them.
        hard: distributions ``(n, m)``, or the index of the right answer of each row, ``(n,)`` of an integer dtype.
        alpha: share of the teacher, in [0, 1].

    Returns:
        ``(n, m)``, rows sum to 1.

    Raises:
        ValueError: on shapes that do not go together or ``alpha`` out of range.
    """
    require(0.0 <= alpha <= 1.0, "alpha", alpha, "in [0, 1]")
    require(teacher_logits.ndim == 2, "teacher_logits", tuple(teacher_logits.shape), "of shape (n, m)")
    teacher = teacher_logits.detach()
    if hard.ndim == 1 and not hard.is_floating_point():
        require(hard.shape == teacher.shape[:1], "hard", tuple(hard.shape), f"of shape ({teacher.shape[0]},)")
        hard = torch.nn.functional.one_hot(hard, teacher.shape[1])
    require(hard.shape == teacher.shape, "hard", tuple(hard.shape), f"of shape {tuple(teacher.shape)}")
    return alpha * teacher.softmax(dim=1) + (1.0 - alpha) * hard.to(teacher.dtype)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Mean over the rows of :math:`-\sum_j y_j \log \mathrm{softmax}(s)_j`.

    Args:
        logits: ``(n, m)``.
        targets: distributions ``(n, m)``; no gradient goes into them.

    Raises:
        ValueError: on shapes that differ.
    """
    require(targets.shape == logits.shape, "targets", tuple(targets.shape), f"of shape {tuple(logits.shape)}")
    return -(targets.detach() * log_softmax(logits, dim=1)).sum(dim=1).mean()
