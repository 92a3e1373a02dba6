"""Cautious optimizers: only the coordinates that agree with the present gradient move."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import HALF_OPEN_UNIT, POSITIVE, UNIT, Hyper, Paper, SearchSpace
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.methods.adan import ADAN_EQUATION, ADAN_HYPERS, Adan, adan_chain
from polyak.optim.methods.classic import ADAM_SEARCH, DAMPENING, NESTEROV, SGD_SEARCH
from polyak.optim.methods.lion import LION_SEARCH, RELATIVE_DECAY, Lion
from polyak.optim.rules import adam, adan, cautious, decay, descend, heavy_ball, lion
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.weight import DecayForm

PAPER = Paper("Cautious Optimizers: Improving Training with One Line of Code", 2024, "2411.16085")
MASK = "u <- u * [u * g > 0] / mean([u * g > 0])"
MaskScale = Literal["mean", "count", "none"]
_FORM = "divide by the mean of the mask, multiply by N / (kept + 1), or leave it"


def mask_scale(default: MaskScale) -> Hyper:
    """How the masked direction is brought back to size."""
    return hypers.choice("mask_scale", default, ("mean", "count", "none"), _FORM)


EPS_FORM = hypers.choice(
    "eps_form", "after", ("after", "before"), "eps after or before the bias correction of the root"
)
CORRECT_BIAS = hypers.flag("correct_bias", True, "Adam's bias corrections")


class CAdamW(Optimizer):
    r"""Cautious AdamW (Liang et al., arXiv:2411.16085): AdamW's step where it agrees in sign with the gradient.

    .. math:: \phi = [u g > 0], \qquad p \leftarrow (1-\gamma\lambda) p - \gamma\, u\,\phi / \mathrm{mean}(\phi)

    with AdamW's direction :math:`u` and the mean over one tensor (at least 1e-3). The memories are AdamW's. Weight
    decay is never masked.

    Differs from the authors' code: eps is added after the bias correction, as torch's AdamW does;
    ``eps_form="before"`` gives the authors' numbers.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate :math:`\gamma`, >= 0.
        betas: each in [0, 1).
        eps: >= 0.
        weight_decay: :math:`\lambda` >= 0, decoupled.
        correct_bias: Adam's bias corrections.
        eps_form: "after" or "before" the bias correction of the root.
        mask_scale: "mean", "count" (``N / (kept + 1)``) or "none".
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "cadamw"
    paper = PAPER
    equation = f"u <- m^ / (sqrt(v^) + eps)\n{MASK}\np <- p * (1 - lr * weight_decay) - lr * u"
    memories = "exp_avg, exp_avg_sq, as AdamW"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-3), hypers.betas(0.9, 0.999), hypers.eps(1e-6), hypers.weight_decay(), CORRECT_BIAS, EPS_FORM,
        mask_scale("mean"),
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = ADAM_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("cadamw", "cadamw-epsafter")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        eps_form: Literal["after", "before"] = "after",
        mask_scale: MaskScale = "mean",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, correct_bias=correct_bias,
            eps_form=eps_form, mask_scale=mask_scale, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        base = adam(eps_form=options["eps_form"], correct_bias=options["correct_bias"])
        return chain(decay("decoupled"), base, cautious(options["mask_scale"]), descend())


class CLion(Lion):
    r"""Cautious Lion (Liang et al., arXiv:2411.16085): Lion's signs where they agree with the gradient.

    .. math:: u = \mathrm{sign}(\beta_1 m + (1-\beta_1) g), \qquad
        p \leftarrow (1-\gamma\lambda) p - \gamma\, u\,\phi\, N / (\sum\phi + 1), \quad \phi = [u g > 0]

    Arguments as :class:`Lion`, and

    Args:
        mask_scale: "count" as the authors, "mean" (better for tensors of one element, which "count" halves), "none".
        opposed: weight in [0, 1] of entries that disagree (lucidrains' ``cautious_factor``).
        mask_floor: smallest mean that "mean" divides by, > 0.
    """

    slug = "clion"
    paper = PAPER
    equation = (
        "u <- sign(b1 * m + (1 - b1) * g)\nphi <- [u * g > 0]; u <- u * phi * N / (sum(phi) + 1)\n"
        "p <- p * (1 - lr * weight_decay) - lr * u\nm <- b2 * m + (1 - b2) * g"
    )
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-4), hypers.betas(0.95, 0.98), hypers.weight_decay(), RELATIVE_DECAY, mask_scale("count"),
        Hyper("opposed", 0.0, UNIT, "weight of entries that disagree", static=True),
        Hyper("mask_floor", 1e-3, POSITIVE, "smallest mean of the mask that is divided by", static=True),
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = LION_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("clion", "clion-mean", "clion-factor")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.98),
        weight_decay: float = 0.0,
        decay_relative_to_initial_lr: bool = False,
        mask_scale: MaskScale = "count",
        opposed: float = 0.0,
        mask_floor: float = 1e-3,
        **engine: Unpack[EngineOptions],
    ) -> None:
        Optimizer.__init__(
            self, params, lr=lr, betas=betas, weight_decay=weight_decay, mask_scale=mask_scale, opposed=opposed,
            mask_floor=mask_floor, decay_relative_to_initial_lr=decay_relative_to_initial_lr, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        mask = cautious(options["mask_scale"], options["mask_floor"], options["opposed"])
        form: DecayForm = "initial_lr" if options["decay_relative_to_initial_lr"] else "decoupled"
        return chain(decay(form), lion(), mask, descend())


class CAdan(Adan):
    """Cautious Adan (timm's form): only the first-moment part of Adan's direction is masked, not the difference part.

    A mask at the end of the chain is another method: ``Optimizer(params, chain(adan(), cautious(), descend()))``.
    Arguments as :class:`Adan`, and

    Args:
        mask_scale: "mean", "count" or "none".
    """

    slug = "cadan"
    paper = PAPER
    equation = ADAN_EQUATION.replace(
        "u <- (m^ + b2 * v^)", "m^ <- m^ * [m * g > 0] / mean([m * g > 0])\nu <- (m^ + b2 * v^)"
    )
    hypers: ClassVar[tuple[Hyper, ...]] = (*ADAN_HYPERS, mask_scale("mean"))
    vectors: ClassVar[tuple[str, ...]] = ("cadan",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
        mask_scale: MaskScale = "mean",
        **engine: Unpack[EngineOptions],
    ) -> None:
        Optimizer.__init__(
            self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
            no_prox=no_prox, mask_scale=mask_scale, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        return adan_chain(options, chain(adan()).at("exp_avg", cautious(options["mask_scale"])))


class CSGDM(Optimizer):
    r"""Cautious SGD with momentum (arXiv:2411.16085; timm's form): heavy ball where it agrees with the gradient.

    .. math:: b \leftarrow \mu b + (1-\tau) g, \qquad
        p \leftarrow (1-\gamma\lambda) p - \gamma\, b\,\phi/\mathrm{mean}(\phi), \quad \phi = [b g > 0]

    The buffer starts as the first gradient; weight decay is decoupled and never masked.

    Args:
        params: parameters, named parameters or groups.
        lr: learning rate, >= 0.
        momentum: :math:`\mu` in [0, 1).
        dampening: :math:`\tau` in [0, 1]; not at the first step.
        weight_decay: >= 0, decoupled.
        nesterov: mask and step along :math:`g + \mu b`.
        mask_scale: "mean", "count" or "none".
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range.
    """

    slug = "csgdm"
    paper = PAPER
    equation = f"b <- momentum * b + (1 - dampening) * g; u <- b\n{MASK}\np <- p * (1 - lr * weight_decay) - lr * u"
    memories = "momentum_buffer"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(1e-2), Hyper("momentum", 0.9, HALF_OPEN_UNIT, "retention of the momentum buffer"), DAMPENING,
        hypers.weight_decay(), NESTEROV, mask_scale("mean"),
    )  # fmt: skip
    search_space: ClassVar[SearchSpace] = SGD_SEARCH
    vectors: ClassVar[tuple[str, ...]] = ("csgdm",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        mask_scale: MaskScale = "mean",
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            mask_scale=mask_scale, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        ball = heavy_ball(nesterov=options["nesterov"], dampening=options["dampening"] != 0)
        return chain(decay("decoupled"), ball, cautious(options["mask_scale"]), descend())
