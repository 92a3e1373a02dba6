"""Muon: orthogonalized momentum for matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from polyak.declare import STATIC, Described, Lr, Momentum, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.rule import Options
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import EpsPlace, adam
from polyak.optim.vocabulary.balls import momentum_ema
from polyak.optim.vocabulary.matrices import (
    AdjustLR,
    ConvMode,
    NsCoefficients,
    NsDtype,
    NsEps,
    NsEpsForm,
    NsSteps,
    Polar,
    orthogonalize,
)
from polyak.optim.vocabulary.weight import decay, descend


def _is_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, int) and v > 0 for v in value)


SIZES = Described("a list of positive integers", _is_sizes)


class Muon(MatrixMethod):
    """Muon (Jordan et al., 2024; RMS matching: arXiv:2502.16982), with AdamW for everything that is no matrix.

    ::

        M <- momentum * M + (1 - momentum) * G
        U <- (1 - momentum) * G + momentum * M
        W <- W * (1 - lr * weight_decay) - lr * r(A, B) * NewtonSchulz(U)
        (vectors, embeddings, heads: AdamW)

    NewtonSchulz iterates towards the polar factor; r of an (A, B) matrix is ``adjust_lr``: "original"
    sqrt(max(1, A/B)), "match_rms_adamw" 0.2 sqrt(max(A, B)), which wants AdamW's lr, "spectral" sqrt(A/B). Matrices
    are 2-d weights, 3-d stacks of them and 4-d convolutions. A module, or a bare list, is split into the groups of
    Muon and of AdamW, see :class:`MatrixMethod`; groups may also say ``use_muon=True`` or False, as in other
    implementations, and carry it always.

    Differs from Keller Jordan's code: ``p.grad`` is left alone; a parameter without gradient is skipped; the scale of
    a convolution comes from the flattened matrix (``conv_scale="kernel"`` gives his numbers); Newton-Schulz runs in
    bfloat16 on CUDA, in float32 on the CPU. ``aux_eps_form``: "after" is his, "before" Moonlight's.

    Raises:
        ValueError: an argument outside what is allowed, or a tensor with fewer than 2 dimensions in a Muon group.
    """

    slug = "muon"
    family = "matrix"
    paper = Paper(
        "Muon: An optimizer for hidden layers in neural networks", 2024,
        url="https://kellerjordan.github.io/posts/muon/",
    )  # fmt: skip
    vectors = ["muon", "muon-f64", "muon-moonlight", "muon-moonlight-f64", "muon-torch", "muon-torch-f64"]

    masked: ClassVar[bool] = False

    lr: Annotated[Lr, Range(1e-3, 1e-1), "learning rate of the matrices"] = 0.02
    momentum: Momentum = 0.95
    nesterov: Annotated[bool, "orthogonalize one step ahead"] = True
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1), "decoupled weight decay, with the plain lr"] = 0.0
    ns_steps: NsSteps = 5
    ns_coefficients: NsCoefficients = "original"
    ns_eps: NsEps = 1e-7
    ns_eps_form: NsEpsForm = "add"
    ns_dtype: NsDtype = None
    adjust_lr: Annotated[AdjustLR | None, "scale of the step"] = "original"
    conv_mode: Annotated[ConvMode, "flatten a convolution to (out, rest), or batch its leading dimensions"] = "flatten"
    conv_scale: Annotated[Literal["matrix", "kernel"], "dimensions that the scale is taken from"] = "matrix"
    split_sizes: Annotated[Sequence[int] | None, SIZES, STATIC, "rows of fused blocks (QKV) that add up to all"] = None
    aux_eps_form: EpsPlace = "after"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if not cls.is_main(options):
            return chain(decay("decoupled"), adam(eps_form=options["aux_eps_form"]), descend())
        sizes = options["split_sizes"]
        polar = orthogonalize(
            Polar.of(options), options["adjust_lr"], options["conv_mode"], options["conv_scale"],
            tuple(sizes) if sizes else None,
        )  # fmt: skip
        return chain(momentum_ema(options["nesterov"], cls.masked), polar, decay("decoupled"), descend())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; ``use_muon`` says the role where ``role`` does not, and is there in any case."""
        group = dict(param_group)
        group.setdefault("role", "matrix" if group.get("use_muon", True) else "rest")
        group.setdefault("use_muon", self.is_main(group))
        super().add_param_group(group)

    def check_options(self, group: Options) -> None:
        """``role`` and ``use_muon`` say the same, and Muon groups hold matrices."""
        if bool(group["use_muon"]) != self.is_main(group):
            raise ValueError(f"{self._owner()}: a group has role={group['role']!r} and use_muon={group['use_muon']!r}")
        super().check_options(group)
