"""Torque-aware momentum: the gradient is damped by its smoothed angle to the momentum."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import Choice, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.methods.classic import ADAM_SEARCH
from polyak.optim.rules import adatam, decay, descend, torque_aware
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.balls import DECAY_RATE

PAPER = Paper("Torque-Aware Momentum", 2024, "2412.18790")
COSINE = "S <- <m, g> / (|m| |g|); s <- decay_rate * s + (1 - decay_rate) * S; d <- (1 + s) / 2\n"
SCOPE = hypers.choice("scope", "tensor", ("tensor", "global"), "one cosine a tensor, or one over all tensors")
Scope = Literal["tensor", "global"]


class TAM(Optimizer):
    r"""Torque-aware momentum (arXiv:2412.18790).

    .. math:: s \leftarrow \gamma s + (1-\gamma)\cos(m, g), \quad d = (1+s)/2, \quad
        m \leftarrow \beta m + (\epsilon + d) g, \quad p \leftarrow p - \eta m

    The cosine is that of the previous momentum and the gradient, over one tensor; it is 0 where either is zero, and
    not absorbed where it is not finite. The first step is half of SGD's. In noise d is about 1/2, so an lr twice that
    of SGD with momentum gives the same step. There is no authors' code; pytorch_optimizer's TAM is another rule.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\eta`, >= 0.
        momentum: :math:`\beta` in [0, 1).
        decay_rate: :math:`\gamma` in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: >= 0, added to the gradient before the cosine.
        scope: "tensor", or "global" for one cosine over all tensors (every tensor keeps a copy of s).
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "tam"
    paper = PAPER
    equation = COSINE + "m <- momentum * m + (eps + d) * g\np <- p - lr * m"
    memories = "momentum_buffer; cosine_avg: one number a tensor"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-2), hypers.momentum(0.9), DECAY_RATE, hypers.eps(1e-8), hypers.weight_decay(), SCOPE,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = {
        "lr": Range(2e-3, 2.0), "momentum": Choice((0.8, 0.9, 0.95)), "weight_decay": Range(1e-6, 1e-2),
    }  # fmt: skip
    vectors: ClassVar[tuple[str, ...]] = ("tam-card",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        momentum: float = 0.9,
        decay_rate: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scope: Scope = "tensor",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, decay_rate=decay_rate, eps=eps, weight_decay=weight_decay, scope=scope,
            **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return chain(decay("coupled"), torque_aware(options["scope"] == "global"), descend())


class AdaTAM(Optimizer):
    r"""Adaptive torque-aware momentum (arXiv:2412.18790), with L2 regularization.

    .. math:: m \leftarrow \beta_1 m + (\epsilon + d) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        p \leftarrow p - \eta\, m / (\sqrt{v} + \epsilon)

    with TAM's :math:`d`. Without ``dampen`` there is no :math:`1-\beta_1`: m is about 5 times Adam's, so the lr should
    be as much smaller.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\eta`, >= 0.
        betas: each in [0, 1).
        decay_rate: in [0, 1).
        eps: >= 0.
        weight_decay: >= 0, added to the gradient before the cosine.
        dampen: weigh the gradient by :math:`1-\beta_1` too.
        bias_correction: Adam's bias corrections.
        scope: "tensor" or "global".
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "adatam"
    paper = PAPER
    equation = COSINE + "m <- b1 * m + (eps + d) * g\nv <- b2 * v + (1 - b2) * g^2\np <- p - lr * m / (sqrt(v) + eps)"
    memories = "exp_avg, exp_avg_sq; cosine_avg: one number a tensor"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), DECAY_RATE, hypers.eps(1e-8), hypers.weight_decay(),
        hypers.flag("dampen", False, "weigh the gradient by 1 - betas[0]"),
        hypers.flag("bias_correction", False, "Adam's bias corrections"), SCOPE,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH | {"lr": Range(1e-5, 1e-2), "weight_decay": Range(1e-6, 1e-2)}
    vectors: ClassVar[tuple[str, ...]] = ("adatam-card",)
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        decay_rate: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        dampen: bool = False,
        bias_correction: bool = False,
        scope: Scope = "tensor",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, decay_rate=decay_rate, eps=eps, weight_decay=weight_decay, dampen=dampen,
            bias_correction=bias_correction, scope=scope, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        direction = adatam(options["dampen"], options["bias_correction"], options["scope"] == "global")
        return chain(decay("decoupled" if cls.decoupled else "coupled"), direction, descend())


class AdaTAMW(AdaTAM):
    """:class:`AdaTAM` with decoupled weight decay, ``p <- p * (1 - lr * weight_decay)`` before the step."""

    slug = "adatamw"
    equation = AdaTAM.equation.replace("p <- p -", "p <- p * (1 - lr * weight_decay) -")
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH | {"lr": Range(1e-5, 1e-2)}
    vectors: ClassVar[tuple[str, ...]] = ("adatamw-card",)
    decoupled: ClassVar[bool] = True
