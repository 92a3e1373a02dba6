"""AdEMAMix: a fast and a very slow average of the gradient."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import NON_NEGATIVE, Choice, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.rules import ademamix, decay, descend
from polyak.optim.vocabulary import hypers

WARMUP = "steps to reach its full value; None or 0: at once"


class AdEMAMix(Optimizer):
    r"""AdEMAMix (Pagliardini et al., arXiv:2409.03137): better use of very old gradients.

    .. math:: m_1 \leftarrow \beta_1 m_1 + (1-\beta_1) g, \quad m_2 \leftarrow \beta_3(t) m_2 + (1-\beta_3(t)) g, \quad
        p \leftarrow (1-\gamma\lambda)p - \gamma\,\frac{\hat m_1 + \alpha(t) m_2}{\sqrt{\hat v} + \epsilon}

    :math:`m_2` is not bias corrected, on purpose. The schedules follow the saved step, counted from 1, and survive a
    resume. ``alpha`` also enlarges the step, by up to ``1 + alpha``: lower the lr. Runs shorter than
    :math:`1/(1-\beta_3)` steps hardly see :math:`m_2`. The paper uses alpha 5 to 8 and
    both warm-ups as long as the run.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: :math:`(\beta_1, \beta_2, \beta_3)`, each in [0, 1); :math:`\beta_1 = 0` saves a buffer.
        alpha: weight of the slow average, >= 0.
        beta3_warmup: steps over which the half-life grows linearly from that of beta1 to that of beta3.
        alpha_warmup: steps over which alpha grows linearly from 0.
        eps: :math:`\epsilon` >= 0.
        weight_decay: :math:`\lambda` >= 0, decoupled; the paper uses 0.1.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range; betas that are not three.
    """

    slug = "ademamix"
    paper = Paper("The AdEMAMix Optimizer: Better, Faster, Older", 2024, "2409.03137")
    equation = (
        "m1 <- b1 * m1 + (1 - b1) * g\nm2 <- b3(t) * m2 + (1 - b3(t)) * g\nv <- b2 * v + (1 - b2) * g^2\n"
        "p <- p * (1 - lr * weight_decay) - lr * (m1^ + alpha(t) * m2) / (sqrt(v^) + eps)"
    )
    memories = "exp_avg (none if betas[0] = 0), exp_avg_slow, exp_avg_sq"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3),
        hypers.betas(0.9, 0.999, 0.9999, static="zero"),
        Hyper("alpha", 2.0, NON_NEGATIVE, "weight of the slow average"),
        Hyper("beta3_warmup", None, NON_NEGATIVE, WARMUP, optional=True),
        Hyper("alpha_warmup", None, NON_NEGATIVE, WARMUP, optional=True),
        hypers.eps(1e-8),
        hypers.weight_decay(),
    )
    search_space: ClassVar[SearchSpace] = {
        "lr": Range(1e-4, 1e-2), "alpha": Choice((2.0, 5.0, 8.0)), "weight_decay": Range(1e-4, 1e-1),
        "betas": Choice(((0.9, 0.999, 0.99), (0.9, 0.999, 0.999), (0.9, 0.999, 0.9999))),
    }  # fmt: skip
    vectors: ClassVar[tuple[str, ...]] = ("ademamix", "ademamix-warmup", "ademamix-beta1zero")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: float | None = None,
        alpha_warmup: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, alpha=alpha, beta3_warmup=beta3_warmup, alpha_warmup=alpha_warmup, eps=eps,
            weight_decay=weight_decay, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return chain(decay("decoupled"), ademamix(fast=options["betas"][0] != 0), descend())

    def check_options(self, group: Options) -> None:
        """A slow average that is faster than the fast one is a likely mistake."""
        if group["betas"][2] < group["betas"][0]:
            warnings.warn(
                "AdEMAMix: betas[2] < betas[0]: the slow average is the faster one", UserWarning, stacklevel=5
            )
