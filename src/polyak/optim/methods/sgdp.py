"""SGDP: heavy ball that does not inflate scale-invariant weights."""

from __future__ import annotations

from typing import Annotated

from polyak.declare import Choice, Dampening, Eps, Lr, Momentum, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.scale_free import Delta, WdRatio, project
from polyak.optim.vocabulary.weight import decay, descend


class SGDP(Method):
    """SGDP (Heo et al., arXiv:2006.08217): heavy ball without the component along scale-invariant weights.

    ::

        b <- momentum * b + (1 - dampening) * g; u <- b
        if |cos(g, p)| < delta / sqrt(dim) in every row, or as a whole:
            u <- u - <u, p> p / |p|^2, weight_decay * wd_ratio
        p <- p * (1 - lr * weight_decay / (1 - momentum)) - lr * u

    Decay is divided by ``1 - momentum``, so that it is as strong as SGD's L2 decay. Dampening holds at the first step
    too; ``nesterov`` steps along ``g + momentum * b``.

    Differs from the authors' code: without nesterov that projects the buffer itself, through an alias; the paper does
    not. ``project_buffer=True`` gives the code's numbers.

    Raises:
        ValueError: an argument outside what is allowed; ``project_buffer`` together with nesterov.
    """

    slug = "sgdp"
    family = "momentum"
    paper = Paper(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", 2020, "2006.08217"
    )
    vectors = ["sgdp", "sgdp-paper", "sgdp-nesterov"]

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 1e-1
    momentum: Annotated[Momentum, Choice((0.8, 0.9, 0.95))] = 0.0
    dampening: Dampening = 0.0
    weight_decay: Annotated[WeightDecay, Range(1e-6, 1e-2), "decoupled weight decay"] = 0.0
    nesterov: Nesterov = False
    eps: Annotated[Eps, "smallest norm"] = 1e-8
    delta: Delta = 0.1
    wd_ratio: WdRatio = 0.1
    project_buffer: Annotated[bool, "with momentum, keep the projected buffer, as the authors' code does"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
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
