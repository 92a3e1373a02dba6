"""AdamP and SGDP: momentum that does not inflate scale-invariant weights."""

from __future__ import annotations

from typing import ClassVar

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import NON_NEGATIVE, Hyper, Paper, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.methods.classic import ADAM_SEARCH, DAMPENING, NESTEROV, SGD_SEARCH
from polyak.optim.rules import adam, decay, descend, heavy_ball, project
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.scale_free import DELTA, WD_RATIO

PAPER = Paper("AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", 2020, "2006.08217")
TEST = "if |cos(g, p)| < delta / sqrt(dim) in every row, or as a whole: u <- u - <u, p> p / |p|^2, decay * wd_ratio"


class AdamP(Optimizer):
    r"""AdamP (Heo et al., arXiv:2006.08217): Adam whose step has no component along scale-invariant weights.

    .. math:: u = \hat m / (\sqrt{\hat v} + \epsilon), \qquad
        u \leftarrow u - \langle u, p\rangle p / \|p\|^2 \text{ where } |\cos(g, p)| < \delta/\sqrt{d}

    tested on rows (``shape[0]``, the output channels) first, then on the whole tensor; projected tensors get
    ``wd_ratio`` of the decoupled weight decay. Tensors with fewer than 2 dimensions are plain Adam.
    ``diagnostics()`` tells which are projected.

    Differs from the authors' code: channels_last and other strides work; nothing else. Sharding must keep rows
    whole.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, >= 0.
        betas: each in [0, 1).
        eps: >= 0, also the smallest norm of test and projection.
        weight_decay: >= 0, decoupled.
        delta: :math:`\delta` >= 0; 0 switches the projection off.
        wd_ratio: in [0, 1].
        nesterov: read the momentum one step ahead.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "adamp"
    paper = PAPER
    equation = f"u <- m^ / (sqrt(v^) + eps)\n{TEST}\np <- p * (1 - lr * weight_decay) - lr * u"
    memories = "exp_avg, exp_avg_sq"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), hypers.eps(1e-8), hypers.weight_decay(), DELTA, WD_RATIO, NESTEROV,
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("adamp", "adamp-delta", "adamp-nesterov")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio,
            nesterov=nesterov, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return chain(adam(nesterov=options["nesterov"]), project(), decay("decoupled"), descend())


class SGDP(Optimizer):
    r"""SGDP (Heo et al., arXiv:2006.08217): heavy ball without the component along scale-invariant weights.

    .. math:: b \leftarrow \mu b + (1-\tau) g, \qquad p \leftarrow (1 - \gamma\lambda f/(1-\mu)) p - \gamma\,\Pi_p(b)

    with AdamP's test and projection :math:`\Pi_p`, and :math:`f` = ``wd_ratio`` where it projects. Decay is divided
    by :math:`1-\mu`, so that it is as strong as SGD's L2 decay.

    Differs from the authors' code: without nesterov that projects the buffer itself, through an alias; the paper does
    not. ``project_buffer=True`` gives the code's numbers.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, >= 0.
        momentum: :math:`\mu` in [0, 1).
        dampening: :math:`\tau` in [0, 1], also at the first step.
        weight_decay: >= 0, decoupled.
        nesterov: step along :math:`g + \mu b`.
        eps: smallest norm, >= 0.
        delta: >= 0; 0 switches the projection off.
        wd_ratio: in [0, 1].
        project_buffer: keep the projected buffer, as the authors' code does without nesterov.
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range; ``project_buffer`` together with nesterov.
    """

    slug = "sgdp"
    paper = PAPER
    equation = (
        f"b <- momentum * b + (1 - dampening) * g; u <- b\n{TEST}\n"
        "p <- p * (1 - lr * weight_decay / (1 - momentum)) - lr * u"
    )
    memories = "momentum_buffer"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-1), hypers.momentum(0.0), DAMPENING, hypers.weight_decay(), NESTEROV,
        Hyper("eps", 1e-8, NON_NEGATIVE, "smallest norm"), DELTA, WD_RATIO,
        hypers.flag("project_buffer", False, "keep the projected buffer"),
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = SGD_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("sgdp", "sgdp-paper", "sgdp-nesterov")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        project_buffer: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            eps=eps, delta=delta, wd_ratio=wd_ratio, project_buffer=project_buffer, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        dampening = options["dampening"] != 0
        ball = heavy_ball(options["nesterov"], dampening, dampen_first=True, keep_read_out=options["project_buffer"])
        end = chain(decay("decoupled", over_momentum=True), descend())
        if options["project_buffer"]:
            return chain(ball.at("momentum_buffer", project()), project(only_decay=True), end)
        return chain(ball, project(), end)

    def check_options(self, group: Options) -> None:
        """The alias in the authors' code exists only without nesterov."""
        if group["project_buffer"] and group["nesterov"]:
            raise ValueError("SGDP: project_buffer is the authors' code without nesterov; with it nothing is aliased")
