"""SINGD: Kronecker factors with a momentum of their own, moved by multiplications alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from polyak.declare import (
    HALF_OPEN_UNIT,
    NON_NEGATIVE,
    STATIC,
    STATIC_IF_ZERO,
    Choice,
    Described,
    Interval,
    Lr,
    Momentum,
    Paper,
    Range,
    WeightDecay,
)
from polyak.memory.structure import Structure
from polyak.memory.structured import STRUCTURES
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.layers import Layer
from polyak.optim.engine.rule import Options, Rule
from polyak.optim.engine.taps import Seen
from polyak.optim.layerwise.base import LayerMethod, Memory
from polyak.optim.method import MatrixMethod
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.weight import decay, descend


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(v in STRUCTURES for v in value)


PAIR = Described(f"two of {list(STRUCTURES)}", _is_pair)


class SINGD(LayerMethod, MatrixMethod):
    """SINGD (Lin et al., arXiv:2312.05705): natural gradient by structured factors, without an inverse.

    ::

        every T steps, from a layer's inputs a and its samples' output gradients g, with P onto the structure:
            H_K <- P[K^T mean(a a^T) K];  H_C <- P[C^T N sum(g g^T) C]
            m_K <- alpha1 * m_K + 1/2 (tr(H_C)/d * H_K + damping * tr(P[C^T C])/d * P[K^T K] - I)
            m_C <- alpha1 * m_C + 1/2 (tr(H_K)/p * H_C + damping * tr(P[K^T K])/p * P[C^T C] - I)
            K <- K - lr_cov * K m_K;  C <- C - lr_cov * C m_C
        D <- C C^T G K K^T + weight_decay * W, G = [dW | db]
        b <- momentum * b + D;  W <- W - lr * b
        (other weights: the same momentum along their gradient, or AdamW)

    K and C start as I; their product stands for an inverse Fisher matrix, and they are moved by multiplications, so
    that bfloat16 will do (``factor_dtype``). With structures other than dense they are kept as their entries. T and
    ``lr_cov`` may be changed in ``param_groups`` as a schedule does. Factors that grow without bound at the start want
    ``normalize_lr_cov``, or a smaller ``lr_cov`` there.

    Differs from the authors' code: weights of other layers are trained; several passes a step count as parts of one
    batch; of ``block30diagonal`` the transpose is taken where it is meant, and there a block by itself.

    Raises:
        ValueError: an argument outside what is allowed; a layer that is shared, sharded (FSDP2) or of a kind that is
            not understood, which is named.
        TypeError: no model is given.
    """

    slug = "singd"
    family = "second order"
    paper = Paper(
        "Structured Inverse-Free Natural Gradient: Memory-Efficient & Numerically-Stable KFAC", 2023, "2312.05705"
    )
    vectors = [f"singd-{net}-{kind}" for net in ("mlp", "conv") for kind in ("dense", "diagonal", "hier", "tri")] + [
        "singd-conv-reduce"
    ]
    holds = {
        "input_factor": "K, of the inputs and the bias, the entries of its structure",
        "output_factor": "C, of the output gradients, the entries of its structure",
        "input_momentum": "momentum of K, entries alike",
        "output_momentum": "momentum of C, entries alike",
    }

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 1e-3
    momentum: Annotated[Momentum, STATIC_IF_ZERO, Choice((0.8, 0.9, 0.95))] = 0.9
    weight_decay: Annotated[WeightDecay, Range(1e-5, 1e-1), "added to the direction, times the weight"] = 0.0
    damping: Annotated[float, NON_NEGATIVE, Range(1e-5, 1e-1), "of the Fisher matrix"] = 1e-3
    alpha1: Annotated[float, HALF_OPEN_UNIT, STATIC_IF_ZERO, "retention of the factors' momentum"] = 0.5
    T: Annotated[int, Interval(1), "steps from one refresh of the factors to the next"] = 10
    lr_cov: Annotated[float, NON_NEGATIVE, Range(1e-3, 1e-1), "learning rate of the factors"] = 1e-2
    normalize_lr_cov: Annotated[bool, "bound the factors' steps by the largest entry of their momentum"] = False
    structures: Annotated[Sequence[str], PAIR, STATIC, "of K, the inputs' side, and C"] = ("dense", "dense")
    kfac_approx: Annotated[Literal["expand", "reduce"], "positions of a sample are samples, or are added up before"] = (
        "expand"
    )
    loss_average: Annotated[Literal["batch", "batch+sequence"] | None, "what the loss is a mean over; None: a sum"] = (
        "batch"
    )
    aux: Annotated[Literal["sgd", "adamw"], "rule of other weights; sgd takes lr and weight_decay"] = "sgd"

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if options["aux"] == "adamw" and not cls.is_main(options):
            return chain(decay("decoupled"), adam(), descend())
        ball = (heavy_ball(),) if options["momentum"] else ()
        return chain(cls.decayed(), *ball, descend())

    @classmethod
    def decayed(cls) -> Rule:
        """The rule of weight decay."""
        return decay("coupled")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; without a ``role`` it takes the rule of other weights."""
        group = dict(param_group)
        if group.get("aux", self.defaults["aux"]) == "sgd":
            for name in ("lr", "weight_decay"):
                group.setdefault(name, self.defaults[name])
        super().add_param_group(group)

    def check_options(self, group: Options) -> None:
        """Groups of layers hold their biases too."""

    def is_due(self, group: Options, count: int) -> bool:
        """Every ``T`` steps."""
        return count % int(group["T"]) == 0

    @classmethod
    def memory_names(cls, group: Options) -> tuple[str, ...]:
        """The factors, and their momentum if they have one."""
        momenta = ("input_momentum", "output_momentum") if group["alpha1"] else ()
        return ("input_factor", "output_factor", *momenta)

    @classmethod
    def fresh(cls, layer: Layer, like: Tensor, group: Options) -> Memory:
        """Identities, and momenta of 0."""
        found: Memory = {}
        for side, structure, n in cls.sides(layer, group):
            found[f"{side}_factor"] = structure.identity(n, like)
            if group["alpha1"]:
                found[f"{side}_momentum"] = like.new_zeros(structure.size(n))
        return found

    @classmethod
    def sides(cls, layer: Layer, group: Options) -> list[tuple[str, Structure, int]]:
        """Name, structure and size of the two factors, the inputs' first."""
        first, second = (STRUCTURES[name] for name in group["structures"])
        return [("input", first, layer.inputs), ("output", second, layer.outputs)]

    def _whitened(self, layer: Layer, rows: Tensor, side: int) -> Tensor:
        """``P[F^T (rows^T rows) F]`` for a factor F."""
        name, structure, _ = self.sides(layer, self.group_of(layer))[side]
        factor = self.memory(layer)[f"{name}_factor"]
        return structure.gram(structure.right(rows.to(factor.dtype), factor))

    def enter(self, layer: Layer, x: Tensor) -> Tensor:
        """The second moment of the inputs, whitened; a sum."""
        expands = self.group_of(layer)["kfac_approx"] == "expand"
        return self._whitened(layer, x.flatten(0, 1) if expands else x.mean(1), 0)

    def leave(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The second moment of the gradients, whitened; a sum."""
        expands = self.group_of(layer)["kfac_approx"] == "expand"
        return self._whitened(layer, gradient.flatten(0, 1) if expands else gradient.sum(1), 1)

    def means(self, layer: Layer, seen: Seen) -> tuple[Tensor, Tensor]:
        """The mean of the inputs' part; the gradients' times the samples that the loss is a mean over."""
        group = self.group_of(layer)
        terms = {"batch": seen.samples, "batch+sequence": seen.rows, None: 1}[group["loss_average"]]
        return seen.entered / (seen.rows if group["kfac_approx"] == "expand" else seen.samples), seen.left * terms

    def refreshed(self, layer: Layer, memory: Memory, entered: Tensor, left: Tensor) -> Memory:
        """Both factors moved, from what both were."""
        group, found = self.group_of(layer), dict(memory)
        sides = self.sides(layer, group)
        kept = [memory[f"{name}_factor"] for name, _, _ in sides]
        second = [h.to(k.dtype) for h, k in zip((entered, left), kept, strict=True)]
        squares = [structure.square(k, n) for (_, structure, n), k in zip(sides, kept, strict=True)]
        for i, (name, structure, n) in enumerate(sides):
            _, other, size = sides[1 - i]
            weights = self._weights(other, size, second[1 - i], squares[1 - i])
            moved = weights[0] * second[i] + group["damping"] * weights[1] * squares[i]
            found |= self._moved(layer, name, memory, moved - structure.identity(n, kept[i]), structure, n)
        return found

    def _weights(self, other: Structure, n: int, second: Tensor, square: Tensor) -> tuple[Any, Any]:
        """What the other side gives to this one's second moment and damping: its mean eigenvalues."""
        return other.mean_diagonal(second, n), other.mean_diagonal(square, n)

    def _moved(self, layer: Layer, side: str, memory: Memory, gradient: Tensor, structure: Structure, n: int) -> Memory:
        group, factor = self.group_of(layer), memory[f"{side}_factor"]
        rate: Any = self.factor_lr(layer)
        m = gradient * ((1 - group["alpha1"]) / 2 if group["normalize_lr_cov"] else 0.5)
        if group["alpha1"]:
            m = group["alpha1"] * memory[f"{side}_momentum"] + m
        if group["normalize_lr_cov"]:
            rate = rate / m.abs().amax().clamp(min=1.0)
        moved = {f"{side}_factor": factor - rate * structure.product(factor, m, n)}
        return moved | ({f"{side}_momentum": m} if group["alpha1"] else {})

    def factor_lr(self, layer: Layer) -> float:
        """The learning rate of a layer's factors at this step."""
        return float(self.group_of(layer)["lr_cov"])

    def precondition(self, layer: Layer, memory: Memory, gradient: Tensor) -> Tensor:
        """``C C^T G K K^T``."""
        (_, inner, _), (_, outer, _) = self.sides(layer, self.group_of(layer))
        k, c = memory["input_factor"], memory["output_factor"]
        right = inner.right_transposed(inner.right(gradient, k), k)
        return outer.right_transposed(outer.right(right.T, c), c).T


class IKFAC(SINGD):
    """IKFAC (Lin et al., arXiv:2312.05705): SINGD's steps towards KFAC's factors, without an inverse.

    ::

        every T steps, from a layer's inputs a and its samples' output gradients g, with P onto the structure:
            H_K <- P[K^T mean(a a^T) K];  H_C <- P[C^T N sum(g g^T) C]
            K <- K - lr_cov / 2 * K (H_K + damping * P[K^T K] - I);  C likewise
        D <- C C^T G K K^T + weight_decay * W, G = [dW | db]
        b <- momentum * b + D;  W <- W - lr * b
        (other weights: the same momentum along their gradient, or AdamW)

    On one batch K K^T goes to the inverse of the damped second moment of the inputs, and C C^T to that of the
    gradients. Otherwise as :class:`SINGD`; the factors have no momentum.

    Raises:
        ValueError: an argument outside what is allowed; a layer that is shared, sharded (FSDP2) or of a kind that is
            not understood, which is named.
        TypeError: no model is given.
    """

    slug = "ikfac"
    family = "second order"
    paper = Paper(
        "Structured Inverse-Free Natural Gradient: Memory-Efficient & Numerically-Stable KFAC", 2023, "2312.05705"
    )
    vectors = ["singd-mlp-ikfac", "singd-conv-ikfac"]

    alpha1: Annotated[float, (0.0,), STATIC_IF_ZERO, "factors have no momentum"] = 0.0

    def _weights(self, other: Structure, n: int, second: Tensor, square: Tensor) -> tuple[Any, Any]:
        return 1.0, 1.0
