"""ALR-NAG: Nesterov's momentum with Polyak's step size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated, Any

from torch import Tensor

from polyak.declare import Momentum, Paper, Range
from polyak.optim.engine import views
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.polyak_step import AdaptiveDecay, Caution, LargestStep, LeastLoss, polyak_step


class ALRNAG(Method):
    """ALR-NAG, Nesterov's momentum with Polyak's step size (Wang et al., arXiv:2305.12939). It needs the loss.

    ::

        eta <- min(lr, max(0, f(y) - lb) / (c * |g(y)|^2))
        x_new <- y * (1 - eta * weight_decay) - eta * g(y)
        y <- x_new + momentum * (x_new - x)

    Loss and gradient are those of the point y ahead, at which the model's weights are between steps; those of x are
    there in ``with optimizer.at_solution():``. Polyak's own step size where momentum is 0.

    The step size is one for the whole model: sums go over all tensors of all groups. ``lr`` is its cap; the rate of
    plain SGD, with its schedule, does, and infinity is the deterministic form. ``c`` of 0.5 to 1 is usual for networks.
    The loss, ``step(loss=...)``, a closure or ``set_loss(...)``, is that which the gradients are of: the mean over
    accumulated batches, unscaled. eta, and what it is without its cap, are in ``diagnostics()``.

    There is no code of the authors. This is a straight derivation after the paper's, an interpretation.

    Raises:
        ValueError: an argument outside what is allowed.
    """

    slug = "alr_nag"
    family = "step size"
    paper = Paper("Generalized Polyak Step Size for First Order Optimization with Momentum", 2023, "2305.12939")
    vectors = ["alr-nag-card"]
    evidence = "interpretation"

    lr: Annotated[LargestStep, Range(1e-3, 1e1)] = 0.1
    momentum: Momentum = 0.9
    lb: LeastLoss = 0.0
    c: Caution = 1.0
    weight_decay: Annotated[AdaptiveDecay, Range(1e-6, 1e-2)] = 0.0

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
