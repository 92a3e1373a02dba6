r"""N:M masks: of every M consecutive weights of a row the N largest are kept.

Hardware that multiplies sparse matrices wants them in this form (2:4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyak.memory._check import require


def n_of_m(weight: Tensor, n: int, m: int, dim: int = 1) -> Tensor:
    r"""Which entries stay when of each ``m`` consecutive ones the ``n`` largest in size are kept.

    Groups run along the input dimension: of a matrix (out, in) along its rows, of a convolution (out, in, ...) along
    its input channels at one place of the kernel. Of equal entries the first stays.

    Args:
        weight: real tensor.
        n: how many of a group are kept, 1 <= n <= m.
        m: size of a group; it divides ``weight.shape[dim]``.
        dim: the input dimension.

    Returns:
        Tensor of zeros and ones like ``weight``.

    Raises:
        ValueError: ``n`` outside 1 to ``m``, a ``dim`` that ``weight`` lacks or whose size ``m`` does not divide.
    """
    require(1 <= n <= m, "n", n, f"in 1 to m = {m}")
    require(-weight.ndim <= dim < weight.ndim, "dim", dim, f"a dimension of a weight of shape {tuple(weight.shape)}")
    size = weight.shape[dim]
    require(size % m == 0, "m", m, f"a divisor of the {size} inputs of a weight of shape {tuple(weight.shape)}")
    # sorted, as torch.topk promises no order among equals
    last = weight.movedim(dim, -1)
    groups = last.abs().reshape(*last.shape[:-1], size // m, m)
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    mask = torch.zeros_like(groups, memory_format=torch.contiguous_format).scatter_(-1, kept, 1.0)
    return mask.reshape(last.shape).movedim(-1, dim)
