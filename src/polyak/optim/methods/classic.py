"""The classics: SGD with momentum, Adam and AdamW, exactly as in ``torch.optim``."""

from __future__ import annotations

from typing import ClassVar

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import UNIT, Choice, Hyper, Paper, Range, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.rules import adam, decay, descend, heavy_ball
from polyak.optim.vocabulary import hypers

AMSGRAD = hypers.flag("amsgrad", False, "divide by the largest second moment so far")
NESTEROV = hypers.flag("nesterov", False, "read the momentum one step ahead")
ADAM_SEARCH: dict[str, Range | Choice] = {"lr": Range(1e-4, 3e-2), "weight_decay": Range(1e-4, 1e-1)}
SGD_SEARCH: dict[str, Range | Choice] = {
    "lr": Range(1e-3, 1.0),
    "momentum": Choice((0.8, 0.9, 0.95)),
    "weight_decay": Range(1e-6, 1e-2),
}
DAMPENING = Hyper("dampening", 0.0, UNIT, "dampening of the gradient in the momentum", static="zero")


class SGD(Optimizer):
    r"""Stochastic gradient descent with Polyak's heavy ball or Nesterov momentum, as ``torch.optim.SGD``.

    .. math:: b \leftarrow \mu b + (1-\tau)(g + \lambda p), \quad p \leftarrow p - \gamma b

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. The buffer starts as
    the first gradient. Numbers equal torch's; its checkpoints load and ours load there.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        momentum: :math:`\mu` in [0, 1); 0 keeps no buffer.
        dampening: :math:`\tau` in [0, 1]; not at the first step.
        weight_decay: :math:`\lambda` >= 0, L2 regularization.
        nesterov: step along :math:`g + \mu b`; needs momentum > 0 and no dampening.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "sgd"
    paper = Paper(
        "Some methods of speeding up the convergence of iteration methods", 1964,
        url="https://doi.org/10.1016/0041-5553(64)90137-5",
    )  # fmt: skip
    equation = "b <- momentum * b + (1 - dampening) * (g + weight_decay * p)\np <- p - lr * b"
    memories = "momentum_buffer: one heavy ball"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.momentum(0.0, static="zero"), DAMPENING,
        hypers.weight_decay(), NESTEROV,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = SGD_SEARCH | {"nesterov": Choice((True, False))}
    vectors: ClassVar[tuple[str, ...]] = ("torch.optim.SGD", "reality-check-nesterov")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        if options["momentum"] == 0:
            return chain(decay("coupled"), descend())
        ball = heavy_ball(nesterov=options["nesterov"], dampening=options["dampening"] != 0)
        return chain(decay("coupled"), ball, descend())

    def check_options(self, group: Options) -> None:
        """Nesterov momentum is defined for positive momentum without dampening."""
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("SGD: nesterov needs momentum > 0 and dampening = 0")


class Adam(Optimizer):
    r"""Adam (Kingma and Ba, arXiv:1412.6980), as ``torch.optim.Adam``: L2 regularization, eps outside the root.

    .. math:: m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        p \leftarrow p - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: >= 0, added to the gradient.
        amsgrad: divide by the largest :math:`v` so far (arXiv:1904.09237).
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "adam"
    paper = Paper("Adam: A Method for Stochastic Optimization", 2014, "1412.6980")
    equation = (
        "g <- g + weight_decay * p\nm <- b1 * m + (1 - b1) * g\nv <- b2 * v + (1 - b2) * g^2\n"
        "p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)"
    )
    memories = "exp_avg, exp_avg_sq: averages of the gradient and its square (amsgrad: max_exp_avg_sq)"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), hypers.eps(1e-8), hypers.weight_decay(), AMSGRAD,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH | {"weight_decay": Range(1e-6, 1e-2)}
    vectors: ClassVar[tuple[str, ...]] = ("torch.optim.Adam",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, **engine)

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return chain(decay("coupled"), adam(amsgrad=options["amsgrad"]), descend())


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), as ``torch.optim.AdamW``.

    .. math:: p \leftarrow (1 - \gamma\lambda) p - \gamma\, \hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: :math:`\lambda` >= 0.
        amsgrad: divide by the largest :math:`v` so far (arXiv:1904.09237).
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "adamw"
    paper = Paper("Decoupled Weight Decay Regularization", 2017, "1711.05101")
    equation = (
        "m <- b1 * m + (1 - b1) * g\nv <- b2 * v + (1 - b2) * g^2\n"
        "p <- p * (1 - lr * weight_decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)"
    )
    memories = Adam.memories
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), hypers.eps(1e-8), hypers.weight_decay(1e-2), AMSGRAD,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("torch.optim.AdamW", "reality-check-adamw")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, **engine)

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return chain(decay("decoupled"), adam(amsgrad=options["amsgrad"]), descend())
