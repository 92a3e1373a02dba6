"""How learning rates follow from eigenvalues, and eigenvalues from the batch size (arXiv:2006.09092).

The Hessian of a batch is the full one plus noise. With P parameters, N samples, batches of B, and a variance s2 of an
element of one sample's Hessian, ``b = B / (1 - B / N)`` and ``E = sqrt(P s2 / b)``: an eigenvalue l of the full Hessian
beyond E is seen as ``l + E^2 / l``, any other as the edge of the noise, ``2 E``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

Scaling = Literal["linear", "sqrt", "saturating"]


def effective_batch(batch: int, samples: int) -> float:
    """``B / (1 - B / N)``: how large a batch is for the noise in it; infinite for all samples.

    Raises:
        ValueError: unless 1 <= batch <= samples.
    """
    if not 1 <= batch <= samples:
        raise ValueError(f"batch must be in 1..{samples}, got {batch!r}")
    return math.inf if batch == samples else batch / (1 - batch / samples)


def noise_edge(batch: int, parameters: int, samples: int, variance: float) -> float:
    """``2 sqrt(P s2 / b)``, the largest eigenvalue of the noise alone.

    Raises:
        ValueError: if a number is out of range.
    """
    _positive("parameters", parameters)
    if not (variance >= 0 and math.isfinite(variance)):
        raise ValueError(f"variance must be finite and at least 0, got {variance!r}")
    return 2 * math.sqrt(parameters * variance / effective_batch(batch, samples))


def batch_eigenvalue(eigenvalue: float, batch: int, parameters: int, samples: int, variance: float) -> float:
    """Where an extreme eigenvalue of the full Hessian is in a batch's: ``l + P s2 / (b l)``, or the noise's edge.

    Raises:
        ValueError: if a number is out of range.
    """
    edge = noise_edge(batch, parameters, samples, variance)
    if abs(eigenvalue) > edge / 2:
        return eigenvalue + (edge / 2) ** 2 / eigenvalue
    return math.copysign(edge, eigenvalue)


def noise_variance(eigenvalue: float, seen: float, batch: int, parameters: int, samples: int) -> float:
    """The variance s2 that moves an eigenvalue to where it is ``seen`` in a batch: ``(seen - l) b l / P``.

    Raises:
        ValueError: if a number is out of range, or the batch is all samples.
    """
    _positive("parameters", parameters)
    if batch == samples:
        raise ValueError(f"batch must be below the {samples} samples: a full batch has no noise")
    return (seen - eigenvalue) * effective_batch(batch, samples) * eigenvalue / parameters


def stable_lr(eigenvalue: float, momentum: float = 0.0) -> float:
    """The largest stable lr of the heavy ball, ``2 (1 + momentum) / l``.

    Raises:
        ValueError: if the eigenvalue is not positive, or the momentum not in [0, 1).
    """
    _positive("eigenvalue", eigenvalue)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return 2 * (1 + momentum) / eigenvalue


def heavy_ball_optimum(largest: float, smallest: float) -> tuple[float, float]:
    r"""Polyak's lr and momentum for a quadratic with eigenvalues in [smallest, largest] (1964).

    ::

        lr = 4 / (sqrt(largest) + sqrt(smallest))^2
        momentum = ((sqrt(largest) - sqrt(smallest)) / (sqrt(largest) + sqrt(smallest)))^2

    For the buffer without dampening. ``2 / (largest + smallest)`` is the optimum without momentum.

    Raises:
        ValueError: unless 0 <= smallest <= largest, and largest > 0.
    """
    _positive("largest", largest)
    if not 0 <= smallest <= largest:
        raise ValueError(f"smallest must be in [0, {largest}], got {smallest!r}")
    a, b = math.sqrt(largest), math.sqrt(smallest)
    return 4 / (a + b) ** 2, ((a - b) / (a + b)) ** 2


def scaled_lr(
    base_lr: float,
    base_batch: int,
    batch: int,
    rule: Scaling = "linear",
    seen: tuple[float, float] | None = None,
) -> float:
    """The lr at another batch size.

    Args:
        base_lr: the lr that is good at ``base_batch``.
        base_batch: batch size of it, >= 1.
        batch: the new batch size, >= 1.
        rule: ``"linear"`` ``lr B / B0``, of SGD while noise dominates; ``"sqrt"`` ``lr sqrt(B / B0)``, of Adam and its
            relatives; ``"saturating"`` ``lr l0 / l``, which follows the eigenvalues.
        seen: of ``"saturating"``: the largest eigenvalues l0 and l at the base and the new batch size, measured, or
            from :func:`batch_eigenvalue`.

    Raises:
        ValueError: if a number is not positive, or ``seen`` is missing or not read.
    """
    for name, value in (("base_lr", base_lr), ("base_batch", base_batch), ("batch", batch)):
        _positive(name, value)
    if rule not in get_args(Scaling):
        raise ValueError(f"rule must be one of {list(get_args(Scaling))}, got {rule!r}")
    if (seen is not None) != (rule == "saturating"):
        raise ValueError(f"seen, two eigenvalues, is read by rule='saturating' alone, got {seen!r} for {rule!r}")
    if seen is not None:
        for value in seen:
            _positive("seen", value)
        return base_lr * seen[0] / seen[1]
    ratio = batch / base_batch
    return base_lr * (ratio if rule == "linear" else math.sqrt(ratio))


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
