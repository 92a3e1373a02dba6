r"""Angles, lengths and signs of tensors: the read-outs that compare a memory with what it is applied to.

Every reduction takes ``dim``: ``None`` for the whole tensor (the result is 0-d), or a dimension or a tuple of them,
which are kept with size 1 so that the result broadcasts against its arguments. Sums over float16 and bfloat16 are
formed and returned in float32.

All of them may stand inside a compiled kernel: nothing is checked, nothing branches on values. Squares smaller than the
dtype's smallest normal number count as zero; in float32 that is a norm under 1e-19.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyak.memory._dtype import at_least_float32

Dim = int | tuple[int, ...] | None
"""Dimensions to reduce over; ``None`` is all of them."""


def dot(a: Tensor, b: Tensor, dim: Dim = None) -> Tensor:
    r"""Inner product :math:`\langle a, b\rangle = \sum a_i b_i`.

    Args:
        a: real tensor, any shape.
        b: real tensor, broadcastable against ``a``.
        dim: dimensions to sum over.

    Returns:
        0-d, or the shape of ``a * b`` with the dimensions ``dim`` of size 1; at least float32.
    """
    product = at_least_float32(a) * at_least_float32(b)
    return product.sum() if dim is None else product.sum(dim=dim, keepdim=True)


def norm(x: Tensor, dim: Dim = None) -> Tensor:
    r"""Euclidean (for matrices, Frobenius) norm :math:`\|x\| = \sqrt{\sum x_i^2}`.

    Args:
        x: real tensor, any shape.
        dim: dimensions to sum over.

    Returns:
        0-d, or the shape of ``x`` with the dimensions ``dim`` of size 1; at least float32.
    """
    length: Tensor = torch.linalg.vector_norm(at_least_float32(x), dim=dim, keepdim=dim is not None)
    return length


def rms(x: Tensor, dim: Dim = None) -> Tensor:
    r"""Root mean square :math:`\sqrt{\frac1n \sum x_i^2}`, the size of a typical entry.

    Args:
        x: real tensor, not empty.
        dim: dimensions to average over.

    Returns:
        0-d, or the shape of ``x`` with the dimensions ``dim`` of size 1; at least float32.
    """
    squares = at_least_float32(x).square()
    return (squares.mean() if dim is None else squares.mean(dim=dim, keepdim=True)).sqrt()


def cosine(a: Tensor, b: Tensor, dim: Dim = None, eps: float = 0.0) -> Tensor:
    r"""Cosine of the angle between two tensors, :math:`\langle a, b\rangle / (\|a\|\,\|b\|)`, in [-1, 1].

    0 where either norm is 0. With ``eps`` each norm is raised to at least ``eps``, as
    ``torch.nn.functional.cosine_similarity`` does.

    Args:
        a: real tensor, any shape.
        b: real tensor, broadcastable against ``a``.
        dim: dimensions that make up a vector.
        eps: smallest norm, >= 0.

    Returns:
        0-d, or the shape of ``a * b`` with the dimensions ``dim`` of size 1; at least float32.
    """
    size = norm(a, dim).clamp(min=eps) * norm(b, dim).clamp(min=eps)
    return (dot(a, b, dim) / _one_where_zero(size)).clamp(-1.0, 1.0)


def project(u: Tensor, onto: Tensor, dim: Dim = None, eps: float = 0.0) -> Tensor:
    r"""Component of ``u`` along another tensor: :math:`\frac{\langle u, w\rangle}{(\|w\| + \epsilon)^2}\,w`.

    0 where ``onto`` is 0. ``project(u, w) + reject(u, w)`` is ``u``.

    Args:
        u: real tensor, any shape.
        onto: the direction :math:`w`, broadcastable against ``u``; its length does not matter (for ``eps = 0``).
        dim: dimensions that make up a vector.
        eps: added to the norm, >= 0. AdamP (arXiv:2006.08217) has 1e-8.

    Returns:
        Tensor like ``u``.
    """
    return _along(u, onto, dim, eps).to(u.dtype)


def reject(u: Tensor, onto: Tensor, dim: Dim = None, eps: float = 0.0) -> Tensor:
    r"""Component of ``u`` orthogonal to another: :math:`u - \frac{\langle u, w\rangle}{(\|w\| + \epsilon)^2}\,w`.

    ``u`` itself where ``onto`` is 0.

    Args:
        u: real tensor, any shape.
        onto: the direction :math:`w`, broadcastable against ``u``; its length does not matter (for ``eps = 0``).
        dim: dimensions that make up a vector.
        eps: added to the norm, >= 0. AdamP (arXiv:2006.08217) has 1e-8.

    Returns:
        Tensor like ``u``.
    """
    return (at_least_float32(u) - _along(u, onto, dim, eps)).to(u.dtype)


def agreement(u: Tensor, g: Tensor) -> Tensor:
    r"""Where two tensors point the same way: 1 where :math:`u_i g_i > 0`, else 0.

    Both are scaled up first, so that a product of two small numbers cannot underflow to a disagreement; an infinite
    product has the right sign too. (``sign(u) * g`` would do, and takes three times as long.)

    Args:
        u: real tensor, any shape.
        g: real tensor, broadcastable against ``u``.

    Returns:
        Tensor of zeros and ones in ``u``'s dtype.
    """
    scale = 2.0 ** (537 if u.dtype is torch.float64 else 75)  # the square of the least float32, 2^-149, becomes 2^-148
    return ((u * scale) * (g * scale) > 0).to(u.dtype)


def sign_times_magnitude(sign_of: Tensor, magnitude_of: Tensor) -> Tensor:
    r"""Sign of one tensor, size of another: :math:`\mathrm{sign}(a_i)\,|b_i|`; 0 where :math:`a_i = 0`.

    Args:
        sign_of: :math:`a`, real tensor, any shape.
        magnitude_of: :math:`b`, real tensor, broadcastable against ``sign_of``.

    Returns:
        Tensor of the broadcast shape.
    """
    return torch.sign(sign_of) * torch.abs(magnitude_of)


def _along(u: Tensor, onto: Tensor, dim: Dim, eps: float) -> Tensor:
    """Component of ``u`` along ``onto``, in at least float32."""
    square = (norm(onto, dim) + eps).square()
    return dot(u, onto, dim) / _one_where_zero(square) * at_least_float32(onto)


def _one_where_zero(denominator: Tensor) -> Tensor:
    """Replace denominators that are zero, or too small to divide by, with one."""
    return torch.where(denominator < torch.finfo(denominator.dtype).tiny, 1.0, denominator)
