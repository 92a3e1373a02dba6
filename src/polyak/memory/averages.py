r"""The two memories everything else is made of, and what is needed to read them.

An exponential moving average forgets at the rate ``1 - beta``; a heavy ball (Polyak, 1964) sums with the same
forgetting. With ``gain = 1`` a heavy ball is ``1 / (1 - beta)`` times the average of the same signal.

:func:`ema` and :func:`heavy_ball` are element-wise tensor expressions meant for the inside of compiled kernels: they
check nothing, branch on nothing and follow PyTorch's type promotion. The other functions are plain float64 arithmetic
for the outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.memory._check import require


def ema(average: Tensor, value: Tensor, rate: float | Tensor) -> Tensor:
    r"""Move an average towards a value: :math:`m \leftarrow m + \rho\,(x - m)` with :math:`\rho = 1 - \beta`.

    The argument is the rate and not ``beta``: in a compiled kernel the rate arrives as a 0-d float64 tensor, and a
    ``1 - beta`` written here would be computed again for every element.

    A constant signal is kept bit for bit. ``rate = 0`` returns ``average`` exactly; ``rate = 1`` returns ``value`` up
    to one rounding of the difference, so a first update that must *copy* should copy instead.

    Args:
        average: the average so far, any shape.
        value: the new signal, broadcastable against ``average``.
        rate: weight of the new value, in [0, 1]; a float or a 0-d tensor. Not checked.

    Returns:
        The new average, a new tensor.
    """
    return average + rate * (value - average)


@torch.no_grad()
def ema_(averages: Sequence[Tensor], values: Sequence[Tensor], rate: float) -> None:
    r"""Move many averages towards their values **in place**: :func:`ema` for the tensors of a whole model.

    Computed in each average's dtype, so that float32 averages of bfloat16 weights keep differences below bfloat16's
    resolution. ``rate = 0`` leaves the averages and ``rate = 1`` copies the values, both bit for bit.

    Args:
        averages: the averages so far, floating or complex.
        values: the new signals, one for each average, of its shape; of any floating (complex) dtype.
        rate: weight of the new values, in [0, 1].

    Raises:
        ValueError: if ``rate`` is out of range or the two lists differ in length. Nothing has been changed then.
    """
    require(0.0 <= rate <= 1.0, "rate", rate, "in [0, 1]")
    require(len(averages) == len(values), "values", f"{len(values)} tensors", f"as many as averages ({len(averages)})")
    if rate == 0.0 or not averages:
        return
    if rate == 1.0:
        torch._foreach_copy_(list(averages), list(values))
        return
    alike = [a.dtype == v.dtype for a, v in zip(averages, values, strict=True)]
    if all(alike):
        torch._foreach_lerp_(list(averages), list(values), rate)
        return
    same = [(a, v) for a, v, equal in zip(averages, values, alike, strict=True) if equal]
    if same:
        torch._foreach_lerp_([a for a, _ in same], [v for _, v in same], rate)
    for average, value, equal in zip(averages, values, alike, strict=True):
        if not equal:
            average.lerp_(value.to(average.dtype), rate)


def heavy_ball(memory: Tensor, value: Tensor, momentum: float | Tensor, gain: float | Tensor = 1.0) -> Tensor:
    r"""Add a value to a decaying sum: :math:`m \leftarrow \mu\,m + \gamma\,x` (Polyak, 1964).

    ``gain = 1`` is the heavy ball of SGD, ``gain = 1 - dampening`` that of ``torch.optim.SGD``, and a negative
    momentum is legal (APG, arXiv:2410.02416, uses one in (-1, 0)).

    Args:
        memory: the sum so far, any shape.
        value: the new signal, broadcastable against ``memory``.
        momentum: weight of the past, usually in (-1, 1); a float or a 0-d tensor. Not checked.
        gain: weight of the new value; a float or a 0-d tensor. Not checked.

    Returns:
        The new sum, a new tensor.
    """
    return momentum * memory + gain * value


def debias(beta: float, t: float) -> float:
    r"""Weight an average started at zero has given to its signal after ``t`` updates: :math:`1 - \beta^t`.

    Dividing by it makes the average an unbiased mean; after the first update it returns the signal itself
    (Adam, arXiv:1412.6980). Computed as ``-expm1(t log beta)``, so it keeps full relative accuracy for ``beta`` near 1,
    where ``1 - beta**t`` cancels.

    Args:
        beta: weight of the past, in [0, 1]. 0 gives 1.0 and 1 gives 0.0 (nothing was ever absorbed: do not divide).
        t: number of updates so far, >= 1.

    Raises:
        ValueError: if ``beta`` is outside [0, 1] or ``t`` is below 1.
    """
    require(0.0 <= beta <= 1.0, "beta", beta, "in [0, 1]")
    require(t >= 1, "t", t, "at least 1")
    return 1.0 if beta == 0.0 else -math.expm1(t * math.log(beta))


def half_life(beta: float) -> float:
    r"""Number of updates after which a value's weight has halved: :math:`\log\frac12 / \log\beta`.

    Args:
        beta: weight of the past, in [0, 1]. 0 gives 0.0, 1 gives infinity.

    Raises:
        ValueError: if ``beta`` is outside [0, 1].
    """
    require(0.0 <= beta <= 1.0, "beta", beta, "in [0, 1]")
    if beta == 0.0:
        return 0.0
    return math.inf if beta == 1.0 else -math.log(2.0) / math.log(beta)


def beta_of_half_life(updates: float) -> float:
    r"""The ``beta`` whose :func:`half_life` is ``updates``: :math:`2^{-1/h}`.

    Args:
        updates: half-life in updates, in [0, inf]. 0 gives 0.0, infinity gives 1.0.

    Raises:
        ValueError: if ``updates`` is negative or NaN.
    """
    require(updates >= 0.0, "updates", updates, "in [0, inf]")
    return 0.0 if updates == 0.0 else float(0.5 ** (1.0 / updates))
