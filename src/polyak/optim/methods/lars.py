"""LARS: heavy-ball momentum whose steps are in proportion to the weights of their layer."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Dampening, Lr, Momentum, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.trust import Denominator, Exclude, TrustClip, TrustCoeff, TrustEps, trust
from polyak.optim.vocabulary.weight import descend, subtract, times_lr


class LARS(Method):
    """Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888).

    ::

        q <- trust_coeff * |p| / (|g| + weight_decay * |p| + eps)   (over one tensor; 1 if |p| or |g| is 0)
        b <- momentum * b + lr * q * (g + weight_decay * p)
        p <- p - b

    Tensors with fewer than 2 dimensions, biases and norms, take plain momentum without decay; ``exclude_1d=False``
    treats them as the others. ``lr_in_buffer=False`` steps by ``lr * b`` as timm and others do, which is another rule
    where the lr changes. ``denominator="joint"`` is optax's ``|g + weight_decay * p|``, and ``trust_clip`` LARC. A
    tuned SGD with Nesterov momentum does as well at the batches that LARS was made for (arXiv:2102.06356).

    Raises:
        ValueError: an argument outside what is allowed; nesterov without momentum or with dampening.
    """

    slug = "lars"
    family = "step size"
    paper = Paper("Large Batch Training of Convolutional Networks", 2017, "1708.03888")
    vectors = ["lars", "lars-joint"]
    evidence = "independent code"

    lr: Annotated[Lr, Range(1e-2, 30.0)] = 1.0
    momentum: Momentum = 0.9
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "L2 regularization"] = 0.0
    trust_coeff: Annotated[TrustCoeff, Range(1e-4, 1e-1)] = 1e-3
    eps: TrustEps = 0.0
    nesterov: Nesterov = False
    dampening: Dampening = 0.0
    denominator: Annotated[Denominator, "the sum of the norms, or the norm of the sum"] = "sum"
    trust_clip: TrustClip = False
    lr_in_buffer: Annotated[bool, "the buffer sums steps, each with the lr of its day"] = True
    exclude_1d: Exclude = True

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        ratio = trust(options["denominator"], True, options["trust_clip"], options["exclude_1d"])
        ball = heavy_ball(nesterov=options["nesterov"], dampening=options["dampening"] != 0)
        if options["lr_in_buffer"]:
            return chain(ratio, times_lr(), ball, subtract())
        return chain(ratio, ball, descend())

    def check_options(self, group: Options) -> None:
        """Nesterov momentum is defined for positive momentum without dampening."""
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(f"{self._owner()}: nesterov needs momentum > 0 and dampening = 0")
