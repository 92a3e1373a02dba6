"""Rules for matrices: orthogonalized momentum."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from polyak.memory.matrix import as_matrix, newton_schulz, polar
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Rule, factory

AdjustLR = Literal["original", "match_rms_adamw", "spectral"]
ConvMode = Literal["flatten", "batched"]


def lr_scale(rows: int, columns: int, adjust: AdjustLR | None) -> float:
    """The factor on the step of a (rows, columns) matrix.

    ``"original"`` ``sqrt(max(1, rows / columns))``; ``"match_rms_adamw"`` ``0.2 * sqrt(max(rows, columns))``
    (arXiv:2502.16982), so that AdamW's lr can be kept; ``"spectral"`` ``sqrt(rows / columns)``; None 1.
    """
    if adjust == "original":
        return math.sqrt(max(1.0, rows / columns))
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust == "spectral":
        return math.sqrt(rows / columns)
    return 1.0


@factory
def orthogonalize(
    coefficients: Any = "original",
    steps: int = 5,
    eps: float = 1e-7,
    eps_form: Literal["add", "clamp"] = "add",
    adjust_lr: AdjustLR | None = "original",
    conv_mode: ConvMode = "flatten",
    conv_scale: Literal["matrix", "kernel"] = "matrix",
    ns_dtype: torch.dtype | None = None,
    split_sizes: tuple[int, ...] | None = None,
) -> Rule:
    """Replace the direction by (about) its polar factor ``U V^T``, times :func:`lr_scale`.

    Tensors of 3 dimensions are stacks of matrices; of 4, with ``conv_mode="flatten"``, one matrix (out, rest), with
    ``"batched"`` a stack of kernels. ``conv_scale="kernel"`` takes the scale from the last two dimensions.
    ``split_sizes`` cuts the rows into blocks (fused QKV) that are orthogonalized one by one.
    """

    def solve(block: Tensor) -> Tensor:
        if coefficients == "svd":
            return polar(block)
        return newton_schulz(block, coefficients, steps, eps, eps_form, ns_dtype)

    def function(stack: Tensor) -> Tensor:
        shape = stack.shape[1:]
        if len(shape) == 4 and conv_mode == "batched":
            matrices = stack.reshape(-1, *shape[-2:])
        else:
            count, rows, columns = as_matrix(shape, "batched")
            matrices = stack.reshape(stack.shape[0] * count, rows, columns)
        blocks = [matrices]
        if split_sizes is not None and sum(split_sizes) == matrices.shape[1]:
            blocks = list(matrices.split(list(split_sizes), dim=1))
        sides = [stack if conv_scale == "kernel" else b for b in blocks]
        scales = [lr_scale(side.shape[-2], side.shape[-1], adjust_lr) for side in sides]
        solved = [solve(b).mul_(scale) for b, scale in zip(blocks, scales, strict=True)]
        return (solved[0] if len(solved) == 1 else torch.cat(solved, dim=1)).reshape(stack.shape)

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=c.matrix(function, x.u)), {}

    return Rule("orthogonalize", update, reads_memory=True, traits=("scale_free",))
