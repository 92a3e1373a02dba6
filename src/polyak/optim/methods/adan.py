"""Adan: adaptive Nesterov momentum."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import NON_NEGATIVE, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.rules import adan, clip_norm, decay, descend
from polyak.optim.vocabulary import hypers

ADAN_HYPERS: tuple[Hyper, ...] = (
    hypers.lr(1e-3),
    hypers.betas(0.98, 0.92, 0.99),
    hypers.eps(1e-8),
    hypers.weight_decay(),
    Hyper("max_grad_norm", 0.0, NON_NEGATIVE, "clip by the norm over all tensors; 0: off", static="zero"),
    hypers.flag("no_prox", False, "AdamW's weight decay instead of the proximal one"),
)
ADAN_EQUATION = (
    "d <- g - g_prev (0 at the first step)\nm <- b1 * m + (1 - b1) * g\nv <- b2 * v + (1 - b2) * d\n"
    "n <- b3 * n + (1 - b3) * (g + b2 * d)^2\nu <- (m^ + b2 * v^) / (sqrt(n^) + eps)   (^: bias corrected)\n"
    "p <- (p - lr * u) / (1 + lr * weight_decay)"
)


def adan_chain(options: Options, direction: Chain) -> Chain:
    """Adan around ``direction``: optional clipping before, the chosen weight decay, the step."""
    clip = (clip_norm(),) if options["max_grad_norm"] else ()
    if options["no_prox"]:
        return chain(*clip, decay("decoupled"), direction, descend())
    return chain(*clip, direction, descend(), decay("proximal"))


class Adan(Optimizer):
    r"""Adaptive Nesterov momentum (Xie et al., arXiv:2208.06677).

    With :math:`d_k = g_k - g_{k-1}` (0 at the first step)

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) d, \quad
        n \leftarrow \beta_3 n + (1-\beta_3)(g + \beta_2 d)^2, \quad
        p \leftarrow \frac{p - \gamma (\hat m + \beta_2 \hat v) / (\sqrt{\hat n} + \epsilon)}{1 + \gamma\lambda}

    The betas are retention rates; the paper's are one minus these. The paper uses 5 to 10 times Adam's lr.

    Differs from the authors' code: counters are per parameter; one clipping norm for all groups, with each group's
    ``eps`` and ``max_grad_norm``; ``p.grad`` is not scaled in place. A gradient that is not finite enters
    three memories: use ``check_finite`` or a GradScaler.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: :math:`(\beta_1, \beta_2, \beta_3)`, each in [0, 1).
        eps: :math:`\epsilon` >= 0, outside the root.
        weight_decay: :math:`\lambda` >= 0; the paper uses 0.02.
        max_grad_norm: clip the gradient by its norm over all tensors of all groups; 0 switches it off.
        no_prox: AdamW's form of weight decay.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range; betas that are not three.
    """

    slug = "adan"
    paper = Paper("Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022, "2208.06677")
    equation = ADAN_EQUATION
    memories = "exp_avg, exp_avg_diff, exp_avg_sq: three averages; previous_grad: the last gradient"
    hypers = ADAN_HYPERS
    search_space: ClassVar[SearchSpace] = {"lr": Range(3e-4, 1e-1), "weight_decay": Range(1e-4, 1e-1)}
    vectors: ClassVar[tuple[str, ...]] = ("adan", "adan-noprox", "adan-clip")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
            no_prox=no_prox, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return adan_chain(options, chain(adan()))

    def check_options(self, group: Options) -> None:
        """The paper's convention for betas is a likely mistake."""
        if group["betas"][0] < 0.5:
            warnings.warn(
                f"{self._owner()}: betas[0] = {group['betas'][0]} looks like the paper's 1 - beta; here 0.98 is usual",
                UserWarning,
                stacklevel=5,
            )

    def restart(self) -> None:
        """Forget all memories and counters, as the paper's restart condition asks; the next step is a first step."""
        self._forget()
