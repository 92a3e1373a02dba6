"""Rules for matrices: orthogonalized momentum."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from polyak.declare import STATIC, Described, Interval
from polyak.memory.matrix import COEFFICIENTS, as_matrix, newton_schulz
from polyak.memory.matrix import polar as exact_polar
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.rule import Options, Rule, factory

AdjustLR = Literal["original", "match_rms_adamw", "spectral"]
ConvMode = Literal["flatten", "batched"]
NormEpsForm = Literal["add", "clamp"]
NAMED = (*COEFFICIENTS, "svd")
DTYPES = (None, torch.bfloat16, torch.float32, torch.float64)


def _is_coefficients(value: Any) -> bool:
    if isinstance(value, str):
        return value in NAMED
    if not isinstance(value, (list, tuple)) or not value:
        return False
    rows = value if isinstance(value[0], (list, tuple)) else [value]
    return all(len(row) == 3 and all(isinstance(v, (int, float)) for v in row) for row in rows)


COEFFICIENT_SETS = Described(f"one of {list(NAMED)}, a triple of numbers or a list of triples", _is_coefficients)
NsSteps = Annotated[int, Interval(1, 99), STATIC, "Newton-Schulz steps"]
NsCoefficients = Annotated[Any, COEFFICIENT_SETS, STATIC, "polynomial of the iteration; svd: exact"]
NsEps = Annotated[float, Interval(0, 1, low_open=True), STATIC, "keeps the norm away from zero"]
NsEpsForm = Annotated[NormEpsForm, "add eps to the norm, or clamp as torch and timm do"]
NsDtype = Annotated[torch.dtype | None, DTYPES, "dtype of the iteration; None: by device"]


class Polar(NamedTuple):
    """How (about) the polar factor ``U V^T`` is found: by :func:`newton_schulz`, or exactly with ``"svd"``."""

    coefficients: Any = "original"
    steps: int = 5
    eps: float = 1e-7
    eps_form: NormEpsForm = "add"
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, options: Options) -> Polar:
        """As the options of a group say that begin with ``ns_``; what is missing by default."""
        given = {name: options[f"ns_{name}"] for name in cls._fields if f"ns_{name}" in options}
        coefficients = given.get("coefficients", "original")
        if not isinstance(coefficients, str):
            rows = coefficients if isinstance(coefficients[0], (list, tuple)) else [coefficients]
            given["coefficients"] = tuple(tuple(row) for row in rows)
        return cls(**given)

    def __call__(self, matrices: Tensor) -> Tensor:
        """The factor of each of a stack of matrices, a new tensor."""
        if self.coefficients == "svd":
            return exact_polar(matrices)
        return newton_schulz(matrices, self.coefficients, self.steps, self.eps, self.eps_form, self.dtype)


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


QUINTIC = Polar()
"""Muon's: five steps of Keller Jordan's quintic."""


@factory
def orthogonalize(
    polar: Polar = QUINTIC,
    adjust_lr: AdjustLR | None = "original",
    conv_mode: ConvMode = "flatten",
    conv_scale: Literal["matrix", "kernel"] = "matrix",
    split_sizes: tuple[int, ...] | None = None,
    leave_vectors: bool = False,
) -> Rule:
    """Replace the direction by (about) its polar factor ``U V^T``, times :func:`lr_scale`.

    Tensors of 3 dimensions are stacks of matrices; of 4, with ``conv_mode="flatten"``, one matrix (out, rest), with
    ``"batched"`` a stack of kernels. ``conv_scale="kernel"`` takes the scale from the last two dimensions.
    ``split_sizes`` cuts the rows into blocks (fused QKV) that are orthogonalized one by one.
    ``leave_vectors`` lets tensors of fewer dimensions through, which are refused otherwise.
    """

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
        solved = [polar(b).mul_(scale) for b, scale in zip(blocks, scales, strict=True)]
        return (solved[0] if len(solved) == 1 else torch.cat(solved, dim=1)).reshape(stack.shape)

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(u=c.matrix(function, x.u)), {}

    least = 2 if leave_vectors else 0
    return Rule(
        "orthogonalize", update, reads_memory=True, traits=("scale_free",), applies=lambda shape: len(shape) >= least
    )
