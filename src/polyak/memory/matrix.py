r"""Polar factors of matrices: what Muon and its relatives read out of a matrix-shaped memory.

The polar factor of :math:`X = U\,\mathrm{diag}(\sigma)\,V^\top` is :math:`U V^\top`: the same singular vectors, every
singular value moved to 1. :func:`polar` computes it exactly, :func:`newton_schulz` approximately, with nothing but
matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polyak.memory._check import require
from polyak.memory._dtype import at_least_float32
from polyak.memory.geometry import norm

Triple = tuple[float, float, float]
"""Coefficients ``(a, b, c)`` of one step, :math:`\\sigma \\mapsto a\\sigma + b\\sigma^3 + c\\sigma^5`."""

Coefficients = str | Triple | Sequence[Triple]
"""A name in :data:`COEFFICIENTS`, one triple for all steps, or one triple a step."""

MatrixMode = Literal["flatten", "batched"]
"""How a tensor of more than two dimensions becomes matrices, see :func:`as_matrix`."""


class CoefficientSet(NamedTuple):
    """A published choice of Newton-Schulz steps with the normalisation it was made for."""

    steps: tuple[Triple, ...]
    norm_scale: float = 1.0
    eps: float = 1e-7


COEFFICIENTS: dict[str, CoefficientSet] = {
    # Keller Jordan's Muon (2024): steep at 0, settles in about [0.68, 1.13] instead of at 1.
    "original": CoefficientSet(((3.4445, -4.7750, 2.0315),)),
    # modded-nanogpt: the slope decreases from step to step.
    "quintic": CoefficientSet(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        )
    ),
    # Polar Express (arXiv:2505.16932): minimax for each step, so the input must be strictly inside the unit ball.
    "polar_express": CoefficientSet(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        norm_scale=1.02,
        eps=1e-6,
    ),
    # The textbook iteration X (3 I - X^T X) / 2: exact in the limit, slow from small singular values.
    "cubic": CoefficientSet(((1.5, -0.5, 0.0),)),
    # A quintic that is also exact in the limit, and starts a little faster.
    "simple": CoefficientSet(((2.0, -1.5, 0.5),)),
}


def newton_schulz(
    x: Tensor,
    coefficients: Coefficients = "original",
    steps: int = 5,
    eps: float | None = None,
    eps_form: Literal["add", "clamp"] = "add",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Approximate the polar factor of each matrix by an odd polynomial iteration (Jordan et al., Muon, 2024).

    .. math:: X \leftarrow X / (\|X\|_F + \epsilon), \qquad
        \text{then } X \leftarrow a X + (b Y + c Y^2) X \text{ with } Y = X X^\top

    which acts on every singular value as :math:`\sigma \mapsto a\sigma + b\sigma^3 + c\sigma^5`. For more rows than
    columns the same is done from the right, :math:`Y = X^\top X`, so that :math:`Y` is the smaller of the two. A zero
    matrix stays exactly zero. ``x`` is never written to; at most three buffers of its size are alive at a time.

    Args:
        x: real floating matrices ``(..., rows, cols)``.
        coefficients: a name in :data:`COEFFICIENTS` ("original", "quintic", "polar_express", "cubic", "simple"), one
            triple ``(a, b, c)``, or a sequence of triples, one a step: the last is repeated, a longer list is cut.
        steps: number of steps, 1 to 99.
        eps: > 0; ``None`` takes the named set's (1e-7; Polar Express 1e-6).
        eps_form: "add" divides by ``norm + eps`` (Keller Jordan), "clamp" by ``max(norm, eps)`` (torch, timm).
        dtype: dtype of the iteration. ``None``: float64 stays, else bfloat16 on CUDA and float32 elsewhere.

    Returns:
        Tensor of ``x``'s shape and dtype.

    Raises:
        TypeError: if ``x`` or ``dtype`` is not real floating.
        ValueError: on fewer than two dimensions, unknown coefficients or ``eps_form``, bad ``steps`` or ``eps``.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must have a real floating dtype, got {x.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be real floating, got {dtype}")
    require(x.ndim >= 2, "x", tuple(x.shape), "a matrix or a batch of matrices (at least 2 dimensions)")
    require(1 <= steps <= 99, "steps", steps, "in 1..99")
    require(eps_form in ("add", "clamp"), "eps_form", eps_form, '"add" or "clamp"')
    chosen = _coefficient_set(coefficients)
    eps = chosen.eps if eps is None else eps
    require(eps > 0.0, "eps", eps, "greater than 0")
    if x.numel() == 0:
        return torch.zeros_like(x)

    matrices = x.reshape(-1, *x.shape[-2:])
    if len(matrices) == 1:
        matrices = matrices[0]  # the product of two matrices is faster on a CPU than that of two batches of one
    size = chosen.norm_scale * norm(matrices, dim=(-2, -1))
    size = size + eps if eps_form == "add" else size.clamp(min=eps)
    matrices = (matrices / size).to(_iteration_dtype(x) if dtype is None else dtype)
    for step in range(steps):
        matrices = _odd_polynomial(matrices, *chosen.steps[min(step, len(chosen.steps) - 1)])
    return matrices.to(x.dtype).reshape(x.shape)


def polar(x: Tensor) -> Tensor:
    r"""Exact polar factor :math:`U V^\top` of each matrix, by singular value decomposition.

    Directions in which ``x`` vanishes to rounding (singular values under ``max(rows, cols)`` machine epsilons of the
    largest) stay zero rather than becoming arbitrary, so a zero matrix stays zero; this is the limit of
    :func:`newton_schulz`.

    Args:
        x: real floating matrices ``(..., rows, cols)``. Computed in at least float32.

    Returns:
        Tensor of ``x``'s shape and dtype.

    Raises:
        TypeError: if ``x`` is not real floating.
        ValueError: on fewer than two dimensions.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must have a real floating dtype, got {x.dtype}")
    require(x.ndim >= 2, "x", tuple(x.shape), "a matrix or a batch of matrices (at least 2 dimensions)")
    if x.numel() == 0:
        return torch.zeros_like(x)
    u, sigma, vh = torch.linalg.svd(at_least_float32(x), full_matrices=False)
    threshold = max(x.shape[-2:]) * torch.finfo(sigma.dtype).eps * sigma[..., :1]
    kept = (sigma > threshold).to(u.dtype)
    factor: Tensor = (u * kept.unsqueeze(-2)) @ vh
    return factor.to(x.dtype)


def inverse_roots(x: Tensor) -> Tensor:
    r"""The inverse square root :math:`X^{-1/2}` of each symmetric positive semidefinite matrix.

    By eigenvalues; those below 1e-12 (float64; else 1e-7) of the largest count as if they were so large, so that a
    singular matrix gives something finite.

    Args:
        x: real floating symmetric matrices ``(..., n, n)``, of which the lower triangle is read. Computed in at least
            float32.

    Returns:
        Tensor of ``x``'s shape and dtype.

    Raises:
        TypeError: if ``x`` is not real floating.
        ValueError: if the matrices are not square.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must have a real floating dtype, got {x.dtype}")
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2]
    require(square, "x", tuple(x.shape), "square matrices (the last two dimensions equal)")
    if x.numel() == 0:
        return torch.zeros_like(x)
    values, vectors = torch.linalg.eigh(at_least_float32(x))
    least = 1e-12 if values.dtype == torch.float64 else 1e-7
    roots = values.clamp(min=least * values[..., -1:]).rsqrt().unsqueeze(-2)
    root: Tensor = (vectors * roots) @ vectors.mT
    return root.to(x.dtype)


def as_matrix(shape: Sequence[int], mode: MatrixMode = "batched") -> tuple[int, int, int]:
    r"""Give the ``(batch, rows, cols)`` under which a tensor of this shape is a batch of matrices.

    ============  =====================  ====================================
    shape         "flatten"              "batched"
    ============  =====================  ====================================
    (A, B)        (1, A, B)              (1, A, B)
    (E, A, B)     (1, E, A B)            (E, A, B), a stack of experts
    (O, I, h, w)  (1, O, I h w)          (1, O, I h w), a convolution
    (..., A, B)   (1, first, rest)       (product of the others, A, B)
    ============  =====================  ====================================

    Use it as ``x.reshape(as_matrix(x.shape, mode))``.

    Args:
        shape: at least two dimensions.
        mode: "flatten" or "batched".

    Returns:
        ``(batch, rows, cols)`` with the product of ``shape``.

    Raises:
        ValueError: on fewer than two dimensions or an unknown mode.
    """
    shape = tuple(shape)
    require(len(shape) >= 2, "shape", shape, "at least 2-dimensional (vectors are no matrices)")
    require(mode in ("flatten", "batched"), "mode", mode, '"flatten" or "batched"')
    if mode == "flatten" or len(shape) == 4:
        return 1, shape[0], math.prod(shape[1:])
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _odd_polynomial(x: Tensor, a: float, b: float, c: float) -> Tensor:
    r"""One step :math:`a X + (b Y + c Y^2) X` on a matrix or a batch of them, from the cheaper side."""
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    tall = x.shape[-2] > x.shape[-1]
    gram = x.mT @ x if tall else x @ x.mT
    if c != 0.0:
        gram, b = multiply_add(gram, gram, gram, beta=b, alpha=c), 1.0
    return multiply_add(x, x, gram, beta=a, alpha=b) if tall else multiply_add(x, gram, x, beta=a, alpha=b)


def _iteration_dtype(x: Tensor) -> torch.dtype:
    if x.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if x.is_cuda else torch.float32


def _coefficient_set(coefficients: Coefficients) -> CoefficientSet:
    """Resolve a name, a triple or a sequence of triples."""
    if isinstance(coefficients, str):
        names = ", ".join(COEFFICIENTS)
        require(coefficients in COEFFICIENTS, "coefficients", coefficients, f"one of {names}, a triple or triples")
        return COEFFICIENTS[coefficients]
    triples = (coefficients,) if all(isinstance(entry, (int, float)) for entry in coefficients) else coefficients
    return CoefficientSet(tuple(_triple(entry) for entry in triples))


def _triple(entry: object) -> Triple:
    numbers = tuple(entry) if isinstance(entry, Sequence) else ()
    allowed = "a name, 3 numbers, or a non-empty sequence of 3 numbers each"
    require(len(numbers) == 3, "coefficients", entry, allowed)
    a, b, c = (float(number) for number in numbers)
    return a, b, c
