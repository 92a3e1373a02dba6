"""ALR-NAG: Nesterov's momentum with Polyak's step size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from polyak.optim.engine import views
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.methods._alr import ALR, PAPER
from polyak.optim.vocabulary.polyak_step import polyak_step


class ALRNAG(ALR):
    """ALR-NAG, Nesterov's momentum with Polyak's step size (Wang et al., arXiv:2305.12939). It needs the loss.

    ::

        eta <- min(lr, max(0, f(y) - lb) / (c * |g(y)|^2))
        x_new <- y * (1 - eta * weight_decay) - eta * g(y)
        y <- x_new + momentum * (x_new - x)

    Loss and gradient are those of the point y ahead, at which the model's weights are between steps; those of x are
    there in ``with optimizer.at_solution():``. Polyak's own step size where momentum is 0.

    One step size serves the whole model, with ``lr`` as its cap. The loss is that which the gradients are of, the
    mean over accumulated batches, unscaled; ``help(ALRNAG.__base__)`` says more of both, and of ``c``.

    This is a straight derivation after the paper's, an interpretation.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_nag"
    paper = PAPER
    vectors = ["alr-nag-card"]
    evidence = "interpretation"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        return chain(polyak_step("nesterov"))

    def at_solution(self) -> AbstractContextManager[None]:
        """A block in which the model has the weights x, and not those at which gradients are taken; for evaluation.

        Raises:
            RuntimeError: in such a block; also by ``step()`` in it.
        """

        def back(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
            lead: Tensor | None = state.get("lead")
            return None if lead is None else (-lead).to(p.dtype)

        return views.predicted(self, back)
