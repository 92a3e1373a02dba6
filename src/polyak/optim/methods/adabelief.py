"""AdaBelief: the second moment is the deviation from the momentum."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import Choice, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.rules import adabelief, decay, descend
from polyak.optim.vocabulary import hypers

DecayForm = Literal["decoupled", "coupled", "fixed"]


class AdaBelief(Optimizer):
    r"""AdaBelief (Zhuang et al., arXiv:2010.07468): large steps where the momentum predicts the gradient well.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
        s \leftarrow \beta_2 s + (1-\beta_2)(g - m)^2 + \epsilon, \quad
        p \leftarrow p - \gamma\, \hat m / (\sqrt{\hat s} + \epsilon)

    and with ``rectify`` RAdam's variance rectification. Defaults are those of the authors' package 0.2; the paper's
    results use ``rectify=False``. eps is about the square of Adam's: 1e-16 where Adam is better than SGD, 1e-8 where
    SGD is. Do not clamp gradients elementwise (``g - m`` becomes 0); clipping by norm is fine.

    Differs from the authors' code: coupled decay does not change ``p.grad``; states are float32 for every
    half-precision weight (1e-16 is 0 in float16); nothing is printed.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, >= 0.
        betas: each in [0, 1); a warning under ``rectify`` if ``betas[1] <= 0.6``, where it never takes effect.
        eps: >= 0, added to ``s`` at every step and to the root.
        weight_decay: >= 0.
        decay_form: "decoupled", "coupled" (into the gradient) or "fixed" (not scaled by lr).
        amsgrad: divide by the largest ``s`` so far; no effect on rectified steps.
        rectify: RAdam's rectification.
        degenerated_to_sgd: step along ``m`` while the rectification is undefined, instead of standing still.
        accumulate_eps: off (not the authors') adds eps to the root only.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "adabelief"
    paper = Paper("AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020, "2010.07468")
    equation = (
        "m <- b1 * m + (1 - b1) * g\ns <- b2 * s + (1 - b2) * (g - m)^2 + eps\n"
        "p <- p * (1 - lr * weight_decay) - lr * m^ / (sqrt(s^) + eps)   (rectified as RAdam by default)"
    )
    memories = "exp_avg: average of the gradient; exp_avg_var: of its squared deviation (amsgrad: max_exp_avg_var)"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3),
        hypers.betas(0.9, 0.999),
        hypers.eps(1e-16),
        hypers.weight_decay(),
        hypers.choice("decay_form", "decoupled", ("decoupled", "coupled", "fixed"), "form of weight decay"),
        hypers.flag("amsgrad", False, "divide by the largest s so far"),
        hypers.flag("rectify", True, "RAdam's variance rectification"),
        hypers.flag("degenerated_to_sgd", True, "momentum step while the rectification is undefined"),
        hypers.flag("accumulate_eps", True, "keep eps in the memory"),
    )
    search_space: ClassVar[SearchSpace] = {
        "lr": Range(1e-4, 3e-2), "eps": Choice((1e-16, 1e-12, 1e-8)), "weight_decay": Range(1e-4, 1e-1),
    }  # fmt: skip
    vectors: ClassVar[tuple[str, ...]] = ("adabelief", "adabelief-rectify", "adabelief-coupled", "adabelief-amsgrad")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        decay_form: DecayForm = "decoupled",
        amsgrad: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        accumulate_eps: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decay_form=decay_form, amsgrad=amsgrad,
            rectify=rectify, degenerated_to_sgd=degenerated_to_sgd, accumulate_eps=accumulate_eps, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        names = ("rectify", "amsgrad", "degenerated_to_sgd", "accumulate_eps")
        chosen: dict[str, Any] = {name: options[name] for name in names}
        return chain(decay(options["decay_form"]), adabelief(**chosen), descend())

    def check_options(self, group: Options) -> None:
        """Warn about settings in which the method degenerates."""
        if group["rectify"] and group["betas"][1] <= 0.6:
            warnings.warn("AdaBelief: with betas[1] <= 0.6 no step is ever rectified", UserWarning, stacklevel=5)
        if group["eps"] == 0:
            warnings.warn("AdaBelief: eps = 0 divides by zero once g equals its average", UserWarning, stacklevel=5)

    def reset(self) -> None:
        """Zero all memories and counters."""
        self._forget()
