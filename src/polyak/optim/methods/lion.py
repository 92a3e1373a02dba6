"""Lion: evolved sign momentum."""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import Choice, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.rules import decay, descend, lion
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.weight import DecayForm

RELATIVE_DECAY = hypers.flag("decay_relative_to_initial_lr", False, "decay by lr / initial_lr * weight_decay")
LION_SEARCH: dict[str, Range | Choice] = {
    "lr": Range(1e-5, 1e-2), "weight_decay": Range(1e-3, 1.0), "betas": Choice(((0.9, 0.99), (0.95, 0.98))),
}  # fmt: skip


class Lion(Optimizer):
    r"""Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675).

    .. math:: p \leftarrow (1-\gamma\lambda) p - \gamma\,\mathrm{sign}(\beta_1 m + (1-\beta_1) g), \quad
        m \leftarrow \beta_2 m + (1-\beta_2) g

    Use an lr 3 to 10 times smaller than AdamW's and a weight decay as many times larger. Decay is never folded into
    the gradient: that would change the sign.

    Differs from the authors' code: with half-precision weights the memory is float32, since an average in bfloat16
    stalls.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1); a warning if :math:`\beta_1 > \beta_2`.
        weight_decay: :math:`\lambda` >= 0.
        decay_relative_to_initial_lr: decay factor :math:`1 - \lambda\gamma/\gamma_0`, where :math:`\gamma_0` is the
            lr that the group started with (lucidrains' ``decoupled_weight_decay``).
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "lion"
    paper = Paper("Symbolic Discovery of Optimization Algorithms", 2023, "2302.06675")
    equation = "p <- p * (1 - lr * weight_decay) - lr * sign(b1 * m + (1 - b1) * g)\nm <- b2 * m + (1 - b2) * g"
    memories = "exp_avg: one average of the gradient"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-4), hypers.betas(0.9, 0.99), hypers.weight_decay(),
        RELATIVE_DECAY,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = LION_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("lion", "lion-decoupled")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decay_relative_to_initial_lr: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, weight_decay=weight_decay,
            decay_relative_to_initial_lr=decay_relative_to_initial_lr, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        form: DecayForm = "initial_lr" if options["decay_relative_to_initial_lr"] else "decoupled"
        return chain(decay(form), lion(), descend())

    def check_options(self, group: Options) -> None:
        """The theory of Lion wants b1 <= b2."""
        if group["betas"][0] > group["betas"][1]:
            warnings.warn(f"{self._owner()}: betas[0] > betas[1] is outside Lion's theory", UserWarning, stacklevel=5)
