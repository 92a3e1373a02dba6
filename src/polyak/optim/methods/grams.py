"""Grams: the sign of the gradient with the magnitude of Adam."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import Hyper, Paper, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.methods.cautious import CORRECT_BIAS
from polyak.optim.methods.classic import ADAM_SEARCH
from polyak.optim.rules import adam, decay, descend, grams
from polyak.optim.vocabulary import hypers

_EPS_FORM = hypers.choice("eps_form", "before", ("after", "before"), "eps after or before the bias correction")


class Grams(Optimizer):
    r"""Gradient descent with adaptive momentum scaling (Cao et al., arXiv:2412.17107).

    .. math:: p \leftarrow (1-\gamma\lambda) p - \gamma\,\mathrm{sign}(g)\,|\hat m| / (\sqrt{\hat v} + \epsilon)

    A coordinate with zero gradient does not move. Measured on small problems it is worse than AdamW; do not expect a
    gain without a comparison.

    Differs from the authors' code: ``p.grad`` is left alone.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, >= 0.
        betas: each in [0, 1).
        eps: >= 0.
        weight_decay: >= 0, decoupled.
        correct_bias: Adam's bias corrections.
        eps_form: "before" the bias correction of the root, as the authors' code, or "after", as the paper and torch.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "grams"
    paper = Paper("Grams: Gradient Descent with Adaptive Momentum Scaling", 2024, "2412.17107")
    equation = "p <- p * (1 - lr * weight_decay) - lr * sign(g) * |m^| / (sqrt(v^) + eps)   (m, v as in Adam)"
    memories = "exp_avg, exp_avg_sq"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), hypers.eps(1e-6), hypers.weight_decay(), CORRECT_BIAS, _EPS_FORM,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("grams", "grams-nobias")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        eps_form: Literal["after", "before"] = "before",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias,
            eps_form=eps_form, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        base = adam(eps_form=options["eps_form"], correct_bias=options["correct_bias"])
        return chain(decay("decoupled"), base, grams(), descend())
