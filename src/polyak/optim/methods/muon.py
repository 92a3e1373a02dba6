"""Muon: orthogonalized momentum for matrices, with AdamW for everything else in the same optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from polyak.declare import HALF_OPEN_UNIT, NON_NEGATIVE, Described, Hyper, Interval, Paper, Range, SearchSpace
from polyak.memory.matrix import COEFFICIENTS
from polyak.optim.engine.optimizer import EngineOptions, Optimizer
from polyak.optim.engine.rule import Chain, Options, chain
from polyak.optim.groups import split_matrices
from polyak.optim.rules import adam, decay, descend, momentum_ema, orthogonalize
from polyak.optim.vocabulary import hypers
from polyak.optim.vocabulary.matrices import AdjustLR, ConvMode

AUXILIARY = ("lr", "betas", "eps", "weight_decay")
NAMED = (*COEFFICIENTS, "svd")


def _is_coefficients(value: Any) -> bool:
    if isinstance(value, str):
        return value in NAMED
    if not isinstance(value, (list, tuple)) or not value:
        return False
    rows = value if isinstance(value[0], (list, tuple)) else [value]
    return all(len(row) == 3 and all(isinstance(v, (int, float)) for v in row) for row in rows)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(v, int) and v > 0 for v in value)


COEFFICIENT_SETS = Described(f"one of {list(NAMED)}, a triple of numbers or a list of triples", _is_coefficients)
SIZES = Described("a list of positive integers", _is_sizes)


class Muon(Optimizer):
    r"""Muon (Jordan et al., 2024; RMS matching: arXiv:2502.16982).

    .. math:: M \leftarrow \mu M + (1-\mu) G, \quad U = (1-\mu) G + \mu M \ (\text{nesterov}), \quad
        W \leftarrow (1-\gamma\lambda) W - \gamma\, r(A, B)\, \mathrm{NS}_k(U)

    where NS is a Newton-Schulz iteration towards the polar factor. Groups with ``use_muon=True`` hold matrices (2-d
    weights, 3-d stacks of them, 4-d convolutions); groups with ``use_muon=False`` run AdamW. A module, or a bare list,
    is split into the two: hidden matrices against embeddings, output head and vectors (a bare list without names has
    no roles: only the number of dimensions counts). The ``aux_*`` arguments fill defaults of the auxiliary groups;
    schedulers drive each group's ``lr``.

    Differs from Keller Jordan's code: ``p.grad`` is left alone; a parameter without gradient is skipped; the scale of
    a convolution comes from the flattened matrix (``conv_scale="kernel"`` gives his numbers); Newton-Schulz runs in
    bfloat16 on CUDA, in float32 on the CPU.

    Args:
        params: a module, parameters, named parameters, or groups carrying ``use_muon``.
        lr: learning rate of the matrices, >= 0 (0.02 with "original", AdamW's with "match_rms_adamw").
        momentum: :math:`\mu` in [0, 1).
        nesterov: orthogonalize one step ahead.
        weight_decay: >= 0, decoupled, with the plain lr.
        ns_steps: 1 to 99.
        ns_coefficients: "original", "quintic", "polar_express", "cubic", "simple", "svd" (exact), a triple or a list.
        ns_eps: added to the norm (or its floor), > 0.
        ns_eps_form: "add", or "clamp" as torch and timm do.
        ns_dtype: dtype of the iteration; None chooses by device.
        adjust_lr: :math:`r`: "original" sqrt(max(1, A/B)), "match_rms_adamw" 0.2 sqrt(max(A, B)), "spectral"
            sqrt(A/B), or None.
        conv_mode: "flatten" a convolution to (out, rest), or "batched" over its leading dimensions.
        conv_scale: take :math:`r` from the "matrix" or from the "kernel" (last two) dimensions.
        split_sizes: cut rows into blocks (fused QKV), for matrices whose rows add up to it.
        aux_lr, aux_betas, aux_eps, aux_weight_decay: AdamW's, for ``use_muon=False``.
        aux_eps_form: "after" the bias correction (Keller Jordan), or "before" (Moonlight).
        **engine: ``execution``, ``maximize``, ``check_finite``.

    Raises:
        ValueError: an argument out of its range, or a tensor with fewer than 2 dimensions in a Muon group.
    """

    slug = "muon"
    paper = Paper(
        "Muon: An optimizer for hidden layers in neural networks",
        2024,
        url="https://kellerjordan.github.io/posts/muon/",
    )
    equation = (
        "M <- momentum * M + (1 - momentum) * G\nU <- (1 - momentum) * G + momentum * M\n"
        "W <- W * (1 - lr * weight_decay) - lr * r(A, B) * NewtonSchulz(U)\n(vectors, embeddings, heads: AdamW)"
    )
    memories = "momentum_buffer for matrices; exp_avg, exp_avg_sq for the rest"
    hypers: ClassVar[tuple[Hyper, ...]] = (
        hypers.lr(0.02),
        hypers.momentum(0.95),
        hypers.flag("nesterov", True, "orthogonalize one step ahead"),
        hypers.weight_decay(),
        Hyper("ns_steps", 5, Interval(1, 99), "Newton-Schulz steps", static=True),
        Hyper("ns_coefficients", "original", COEFFICIENT_SETS, "polynomial of the iteration", static=True),
        Hyper("ns_eps", 1e-7, Interval(0, 1, low_open=True), "keeps the norm away from zero", static=True),
        hypers.choice("ns_eps_form", "add", ("add", "clamp"), "add eps to the norm or make it its floor"),
        hypers.choice("ns_dtype", None, (None, torch.bfloat16, torch.float32, torch.float64), "dtype of the iteration"),
        hypers.choice("adjust_lr", "original", ("original", "match_rms_adamw", "spectral", None), "scale of the step"),
        hypers.choice("conv_mode", "flatten", ("flatten", "batched"), "how a convolution becomes matrices"),
        hypers.choice("conv_scale", "matrix", ("matrix", "kernel"), "dimensions that the scale is taken from"),
        Hyper("split_sizes", None, SIZES, "rows of fused blocks", optional=True, static=True),
        Hyper("betas", (0.9, 0.95), HALF_OPEN_UNIT, "AdamW's retention rates"),
        Hyper("eps", 1e-10, NON_NEGATIVE, "AdamW's eps"),
        hypers.choice("aux_eps_form", "after", ("after", "before"), "AdamW's eps after or before bias correction"),
    )
    search_space: ClassVar[SearchSpace] = {
        "lr": Range(1e-3, 1e-1),
        "aux_lr": Range(1e-4, 3e-2),
        "weight_decay": Range(1e-4, 1e-1),
    }
    vectors: ClassVar[tuple[str, ...]] = (
        "muon",
        "muon-f64",
        "muon-moonlight",
        "muon-moonlight-f64",
        "muon-torch",
        "muon-torch-f64",
    )

    def __init__(
        self,
        params: ParamsT | nn.Module,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        ns_coefficients: Any = "original",
        ns_eps: float = 1e-7,
        ns_eps_form: Literal["add", "clamp"] = "add",
        ns_dtype: torch.dtype | None = None,
        adjust_lr: AdjustLR | None = "original",
        conv_mode: ConvMode = "flatten",
        conv_scale: Literal["matrix", "kernel"] = "matrix",
        split_sizes: Sequence[int] | None = None,
        aux_lr: float = 3e-4,
        aux_betas: tuple[float, float] = (0.9, 0.95),
        aux_eps: float = 1e-10,
        aux_weight_decay: float = 0.0,
        aux_eps_form: Literal["after", "before"] = "after",
        **engine: Unpack[EngineOptions],
    ) -> None:
        self._auxiliary = {"lr": aux_lr, "betas": aux_betas, "eps": aux_eps, "weight_decay": aux_weight_decay}
        super().__init__(
            split_matrices(params), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
            ns_steps=ns_steps, ns_coefficients=ns_coefficients, ns_eps=ns_eps, ns_eps_form=ns_eps_form,
            ns_dtype=ns_dtype, adjust_lr=adjust_lr, conv_mode=conv_mode, conv_scale=conv_scale,
            split_sizes=tuple(split_sizes) if split_sizes is not None else None,
            betas=aux_betas, eps=aux_eps, aux_eps_form=aux_eps_form, **engine,
        )  # fmt: skip

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        """See :class:`Optimizer`."""
        if not options.get("use_muon", True):
            return chain(decay("decoupled"), adam(eps_form=options["aux_eps_form"]), descend())
        coefficients = options["ns_coefficients"]
        if not isinstance(coefficients, str):
            rows = coefficients if isinstance(coefficients[0], (list, tuple)) else [coefficients]
            coefficients = tuple(tuple(row) for row in rows)
        polar = orthogonalize(
            coefficients, options["ns_steps"], options["ns_eps"], options["ns_eps_form"], options["adjust_lr"],
            options["conv_mode"], options["conv_scale"], options["ns_dtype"],
            tuple(options["split_sizes"]) if options["split_sizes"] else None,
        )  # fmt: skip
        return chain(momentum_ema(options["nesterov"]), polar, decay("decoupled"), descend())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; without ``use_muon`` it is a Muon group, and must hold matrices only."""
        group = dict(param_group)
        group.setdefault("use_muon", True)
        if not group["use_muon"]:
            for name in AUXILIARY:
                group.setdefault(name, self._auxiliary[name])
        super().add_param_group(group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_auxiliary": self._auxiliary}

    def check_options(self, group: Options) -> None:
        """Muon groups hold matrices."""
        if not group.get("use_muon", True):
            return
        listed = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for i, entry in enumerate(listed):
            p = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(p, Tensor) and p.ndim < 2:
                name = entry[0] if isinstance(entry, tuple) else f"parameter {i}"
                raise ValueError(
                    f"Muon needs matrices, {name} has shape {tuple(p.shape)}; put vectors in a use_muon=False group"
                )
