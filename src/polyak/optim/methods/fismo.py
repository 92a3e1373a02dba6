"""FISMO: Muon in a space that two factors of the Fisher matrix whiten."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from polyak.declare import (
    POSITIVE,
    STATIC,
    UNIT,
    Argument,
    Interval,
    Lr,
    Momentum,
    Paper,
    Range,
    WeightDecay,
)
from polyak.memory.averages import ema
from polyak.memory.matrix import inverse_roots
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.member import holds_nothing
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.matrices import QUINTIC, AdjustLR, NsCoefficients, NsDtype, NsEps, NsSteps, Polar, lr_scale
from polyak.optim.vocabulary.weight import decay, descend

Factors = tuple[Tensor, Tensor, Tensor, Tensor]


def _or_identity(x: Tensor) -> Tensor:
    """A stack of matrices; one of zeros, a memory that nothing was kept in yet, stands for the identity."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return torch.where(_trace(x) == 0, eye, x)


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


def _moved(factor: Tensor, seen: Tensor, gamma: Tensor, damping: Tensor) -> Tensor:
    """A stack of factors after an average with what is seen now, damped, and of the trace of the identity."""
    size = factor.shape[-1]
    eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
    factor = gamma * _or_identity(factor) + (1 - gamma) * (seen + damping * eye)
    factor = factor * (size / _trace(factor))
    return (factor + factor.mT) / 2


def _between(left: Tensor, matrices: Tensor, right: Tensor) -> Tensor:
    """``left @ matrices @ right``; a side that is not whitened has no numbers."""
    matrices = left @ matrices if left.shape[-1] else matrices
    return matrices @ right if right.shape[-1] else matrices


def _square(max_dim: int, side: int, shape: torch.Size) -> tuple[int, int]:
    """The shape of the factor of a side of (shape[0], rest)."""
    size = math.prod(shape[1:]) if side else shape[0]
    return (size, size) if size <= max_dim else (0, 0)


class Whitening(NamedTuple):
    """FISMO's matrix functions, of stacks ``(k, *shape)`` of equal tensors and of what is kept for each."""

    polar: Polar
    normalize_stats: bool
    interval: int
    adjust_lr: AdjustLR | None

    def moved(self, g: Tensor, p: Tensor, q: Tensor, right: Tensor, gamma: Tensor, damping: Tensor) -> Factors:
        """P and Q with this gradient, P first, and their inverse roots."""
        rows, columns = g.shape[-2:]
        if self.normalize_stats:
            size = g.square().mean((-2, -1), keepdim=True).sqrt()
            g = torch.where(size > 0, g / size, 0.0)
        left = p
        if p.shape[-1]:
            turned = g @ _or_identity(right) if q.shape[-1] else g
            p = _moved(p, turned @ turned.mT / columns, gamma, damping)
            left = inverse_roots(p)
        if q.shape[-1]:
            turned = left @ g if p.shape[-1] else g
            q = _moved(q, turned.mT @ turned / rows, gamma, damping)
            right = inverse_roots(q)
        return p, q, left, right

    def whiten(self, stack: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        """The whitened gradient, P, Q and their inverse roots."""
        p, q, left, right, gamma, damping, due = kept
        g = stack.reshape(*stack.shape[:2], -1)
        if self.interval == 1 or holds_nothing(stack) or bool(due[0]):
            p, q, left, right = self.moved(g, p, q, right, gamma[0], damping[0])
        return _between(left, g, right), p, q, left, right

    def read(self, stack: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The direction of the average of whitened gradients."""
        m = stack.reshape(*stack.shape[:2], -1)
        return _between(left, self.polar(m).mul_(lr_scale(m.shape[-2], m.shape[-1], self.adjust_lr)), right)


@factory
def whitened_polar(
    polar: Polar = QUINTIC,
    normalize_stats: bool = False,
    interval: int = 1,
    max_dim: int = 8192,
    adjust_lr: AdjustLR | None = None,
) -> Rule:
    """FISMO's direction ``P^-1/2 Polar(M) Q^-1/2`` with ``M`` an average of ``P^-1/2 G Q^-1/2`` (arXiv:2601.21750).

    Args:
        polar: how the polar factor is found.
        normalize_stats: P and Q see the gradient over its root mean square.
        interval: P, Q and their roots move every so many steps.
        max_dim: a side longer than this is not whitened.
        adjust_lr: a scale as :func:`orthogonalize` has it.
    """

    form = Whitening(polar, normalize_stats, interval, adjust_lr)

    def scalars(h: Options, t: int) -> dict[str, Any]:
        due = float((t - 1) % interval == 0)
        return {"rate": 1 - h["momentum"], "gamma": h["beta_fisher"], "damping": h["damping"], "due": due}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        kept = s.row_factor, s.column_factor, s.row_root, s.column_root
        dtype = x.u.dtype
        settings = (c.gamma.to(dtype), c.damping.to(dtype), c.due)
        whitened, p, q, left, right = c.matrices(form.whiten, 5, x.u, along=(*kept, *settings))
        m = ema(s.momentum_buffer, whitened, c.rate)
        new = {"momentum_buffer": m, "row_factor": p, "column_factor": q, "row_root": left, "column_root": right}
        return x.but(u=c.matrix(form.read, m, along=(left, right))), new

    slots = (
        Slot("momentum_buffer", "average of the whitened gradient", "signed"),
        Slot("row_factor", "P, of trace shape[0]", shape=partial(_square, max_dim, 0)),
        Slot("column_factor", "Q, of the trace of the identity", shape=partial(_square, max_dim, 1)),
        Slot("row_root", "the inverse root of P", shape=partial(_square, max_dim, 0)),
        Slot("column_root", "the inverse root of Q", shape=partial(_square, max_dim, 1)),
    )
    known = FISMO.reads("momentum", "beta_fisher", "damping")
    return Rule("whitened_polar", update, scalars, slots, known, timed=interval > 1)


class FISMO(MatrixMethod):
    """FISMO (arXiv:2601.21750): Muon in a space whitened by Kronecker factors of the Fisher, AdamW for the rest.

    ::

        P <- trace-normalized(beta_fisher * P + (1 - beta_fisher) * (G Q^-1 G^T / n + damping * I))
        Q <- trace-normalized(beta_fisher * Q + (1 - beta_fisher) * (G^T P^-1 G / m + damping * I))
        M <- momentum * M + (1 - momentum) * P^-1/2 G Q^-1/2
        W <- W * (1 - lr * weight_decay) - lr * P^-1/2 NewtonSchulz(M) Q^-1/2
        (vectors, embeddings, heads: AdamW)

    for G of (m, n) = (shape[0], rest); P and Q start as the identity. P is normalized after the average, so the rule as
    printed weighs a gradient by its absolute size: **at usual sizes of gradients P and Q stay the identity and FISMO
    is Muon**, and at very large ones it makes no headway. With ``normalize_stats=True`` P and Q see ``G / rms(G)``, and
    the size of the gradient does not matter; ``beta_fisher=0.99, damping=0.1`` suit it. That option is ours.

    An interpretation: no code of the authors is known, and the paper's values and starts of P and Q were not found. The
    printed algorithm has no weight decay, scale or ``update_interval``, and knows no ``max_dim``: a side longer than
    that is left unwhitened, with a warning, since its factor would take ``side^2`` numbers and ``side^3`` time. A NaN
    would spoil P and Q for good, so steps with gradients that are not finite are refused; ``check_finite=False`` saves
    the look.

    Raises:
        ValueError: an argument outside what is allowed, or a tensor with fewer than 2 dimensions in a matrix group.
    """

    slug = "fismo"
    family = "matrix"
    paper = Paper("FISMO: Fisher-Structured Momentum-Orthogonalized Optimizer", 2026, "2601.21750")
    vectors = ["fismo-card"]
    evidence = "interpretation"

    check_finite: Annotated[bool, Argument("refuse a step with a gradient that is not finite")] = True
    lr: Annotated[Lr, Range(1e-3, 1e-1), "learning rate of the matrices"] = 0.02
    momentum: Momentum = 0.95
    beta_fisher: Annotated[float, UNIT, "retention of P and Q; 1 is Muon"] = 0.95
    damping: Annotated[float, POSITIVE, Range(1e-4, 1.0), "of P and Q, against singular factors"] = 1e-3
    normalize_stats: Annotated[bool, "P and Q see the gradient over its root mean square"] = False
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay, with the plain lr"] = 0.0
    ns_steps: NsSteps = 5
    ns_coefficients: NsCoefficients = "original"
    ns_eps: NsEps = 1e-7
    ns_dtype: NsDtype = None
    adjust_lr: Annotated[AdjustLR | None, "scale of the step, as Muon's"] = None
    update_interval: Annotated[int, Interval(1, 10**6), STATIC, "steps between moves of P and Q"] = 1
    max_dim: Annotated[int, Interval(1, 10**6), STATIC, "longest side that is whitened"] = 8192

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(), descend())
        direction = whitened_polar(
            Polar.of(options), options["normalize_stats"], options["update_interval"], options["max_dim"],
            options["adjust_lr"],
        )  # fmt: skip
        return chain(direction, decay("decoupled"), descend())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; warns of sides that are too long to be whitened."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        shapes = [tuple(p.shape) for p in group["params"]] if self.is_main(group) else []
        long = [shape for shape in shapes if max(shape[0], math.prod(shape[1:])) > group["max_dim"]]
        if long:
            self.advise(f"a side of {long[0]} is longer than max_dim={group['max_dim']} and is not whitened")
