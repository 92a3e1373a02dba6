"""MKOR: Kronecker factors kept as inverses, each moved by one rank-one update."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from polyak.declare import (
    HALF_OPEN_UNIT,
    POSITIVE,
    STATIC,
    STATIC_IF_ZERO,
    UNIT,
    Betas,
    Choice,
    Eps,
    Interval,
    Lr,
    Momentum,
    Paper,
    Range,
    WeightDecay,
)
from polyak.memory.rank_one import UPDATES, RankOne
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.layers import Layer
from polyak.optim.engine.rule import Options
from polyak.optim.engine.taps import Seen
from polyak.optim.layerwise.base import LayerMethod, Memory
from polyak.optim.vocabulary.adaptive import adam
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.trust import trust
from polyak.optim.vocabulary.weight import decay, descend

SIDES = ("input", "output")


class MKOR(LayerMethod):
    """MKOR (Mozaffari et al., arXiv:2306.01685): Kronecker factors by rank-one updates, in front of a base optimizer.

    ::

        a, g <- means over the batch of a layer's inputs and of its samples' output gradients, clamped
        every inv_freq steps, for (J, v) = (R, a) and (L, g):
            J' <- stat_decay * J + (1 - stat_decay) * I;  J <- J' - (J' v)(J' v)^T / (1 + v^T J' v)
        V <- L G R, G = [dW | db];  V <- V * (|dW| + |db|) / (|V_W| + |V_b|)
        w <- the step of the base optimizer for V (other weights: for their gradient)

    The direction has the gradient's norm, so that learning rates of the base carry over. A convolution's inputs are
    patches, meaned over positions. J starts as I, and at a first refresh is left so. ``variant="paper"`` is the update
    as printed, whose factors grow along v: like the covariance, not its inverse; "exact" is the formula of Sherman
    and Morrison for the average of v v^T, whose factors grow too. Both mix J with I where an entry is above
    ``reset_threshold``; "code" then begins anew with I, which cannot happen since its J stays below I.

    Differs from the authors' code: ``stat_decay`` is used, which there is 0.95 whatever it is; several passes a step
    count as parts of one batch, weighted by their samples, and there each is divided by their number before it is
    clamped; a layer whose statistics are not finite keeps its factors; the factors have the weight's dtype, there
    float16.

    Raises:
        ValueError: an argument outside what is allowed; a layer that is shared, sharded (FSDP2) or of a kind that is
            not understood, which is named.
        TypeError: no model is given.
    """

    slug = "mkor"
    family = "second order"
    paper = Paper("MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates", 2023, "2306.01685")
    vectors = ["mkor-mlp", "mkor-conv"]
    holds = {
        "input_inverse": "factor of the inputs and the bias, a square matrix",
        "output_inverse": "factor of the output gradients, a square matrix",
        "input_reset": "whether the inputs' factor begins anew, one number",
        "output_reset": "whether the gradients' factor begins anew, one number",
    }

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 1e-2
    base: Annotated[Literal["sgd", "adamw", "lamb"], "the optimizer that takes the direction"] = "sgd"
    momentum: Annotated[Momentum, STATIC_IF_ZERO, Choice((0.8, 0.9, 0.95)), "of sgd"] = 0.9
    betas: Annotated[Betas, "retention rates, of adamw and lamb"] = (0.9, 0.999)
    eps: Annotated[Eps, "added to the denominator, of adamw and lamb"] = 1e-8
    weight_decay: Annotated[WeightDecay, "the base's: of sgd L2 regularization, of adamw decoupled"] = 0.0
    inv_freq: Annotated[int, Interval(1), "steps from one refresh of the factors to the next"] = 10
    warmup_steps: Annotated[int, Interval(0), "steps at the start that all refresh"] = 0
    stat_decay: Annotated[float, HALF_OPEN_UNIT, "retention of the factors"] = 0.95
    clipping_value: Annotated[float, POSITIVE, "inputs and gradients are clamped to this, and its negative"] = 100.0
    variant: Annotated[RankOne, STATIC, "the update: of the code, as printed, or exact"] = "code"
    stabilization_factor: Annotated[float, UNIT, 'share of I that is mixed in, of "paper" and "exact"'] = 0.1
    reset_threshold: Annotated[float, POSITIVE, "largest entry of a factor that is let be"] = 2.0

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        if options["base"] == "adamw":
            return chain(decay("decoupled"), adam(), descend())
        if options["base"] == "lamb":
            return chain(adam(), trust(), descend())
        ball = (heavy_ball(),) if options["momentum"] else ()
        return chain(decay("coupled"), *ball, descend())

    def is_due(self, group: Options, count: int) -> bool:
        """Every ``inv_freq`` steps, and in the warm-up."""
        return count % int(group["inv_freq"]) == 0 or count < int(group["warmup_steps"])

    @classmethod
    def memory_names(cls, group: Options) -> tuple[str, ...]:
        """The inverses, and whether each begins anew at its next refresh."""
        return ("input_inverse", "output_inverse", "input_reset", "output_reset")

    @classmethod
    def fresh(cls, layer: Layer, like: Tensor, group: Options) -> Memory:
        """Identities, that the first refresh leaves."""
        reset = float(group["variant"] == "code")
        sizes = {"input": layer.inputs, "output": layer.outputs}
        eyes = {f"{side}_inverse": torch.eye(n, dtype=like.dtype, device=like.device) for side, n in sizes.items()}
        return eyes | {f"{side}_reset": like.new_full((), reset) for side in sizes}

    def enter(self, layer: Layer, x: Tensor) -> Tensor:
        """The sum of the clamped inputs."""
        rows = x.mean(1) if isinstance(layer.module, nn.Conv2d) else x.flatten(0, 1)
        return self._clamped(layer, rows).sum(0)

    def leave(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The mean of the clamped gradients of samples, of a mean loss."""
        rows = gradient.mean(1) if isinstance(layer.module, nn.Conv2d) else gradient.flatten(0, 1)
        return self._clamped(layer, len(rows) * rows).mean(0)

    def _clamped(self, layer: Layer, rows: Tensor) -> Tensor:
        limit = float(self.group_of(layer)["clipping_value"])
        return rows.to(self._like(layer).dtype).clamp(-limit, limit)

    def means(self, layer: Layer, seen: Seen) -> tuple[Tensor, Tensor]:
        """Over the batch; the gradients of a pass are already of the whole loss."""
        count = seen.samples if isinstance(layer.module, nn.Conv2d) else seen.rows
        return seen.entered / count, seen.left

    def refreshed(self, layer: Layer, memory: Memory, entered: Tensor, left: Tensor) -> Memory:
        """Both factors moved, the input's first, whose reset is the output's too."""
        group = self.group_of(layer)
        found = dict(memory)
        for side, v in zip(SIDES, (entered, left), strict=True):
            found |= self._moved(side, found, v.to(memory[f"{side}_inverse"].dtype), group)
        return found

    def _moved(self, side: str, memory: Memory, v: Tensor, group: Options) -> Memory:
        inverse, limit = memory[f"{side}_inverse"], float(group["reset_threshold"])
        eye = torch.eye(len(inverse), dtype=inverse.dtype, device=inverse.device)
        update, rate = UPDATES[group["variant"]], float(group["stat_decay"])
        if group["variant"] != "code":
            share = float(group["stabilization_factor"])
            mixed = (1 - share) * inverse + share * eye
            return {f"{side}_inverse": update(torch.where(inverse.abs().amax() > limit, mixed, inverse), v, rate)}
        reset = memory[f"{side}_reset"] > 0
        moved = torch.where(reset, eye, update(inverse, v, rate))
        # a large factor begins anew, together with the other: at their next turn
        large = (~reset & (moved.abs().amax() > limit)).to(inverse.dtype)
        flags = {f"{s}_reset": torch.maximum(memory[f"{s}_reset"], large) for s in SIDES}
        flags[f"{side}_reset"] = large
        return {f"{side}_inverse": moved, **flags}

    def precondition(self, layer: Layer, memory: Memory, gradient: Tensor) -> Tensor:
        """``L G R`` with the norm of the gradient; the gradient itself where that has none."""
        found = memory["output_inverse"] @ gradient @ memory["input_inverse"]
        joint = self.group_of(layer)["variant"] == "paper"
        ratio = _size(layer, gradient, joint) / _size(layer, found, joint)
        return torch.where(ratio.isfinite(), found * ratio, gradient)


def _size(layer: Layer, matrix: Tensor, joint: bool) -> Tensor:
    """The norm of the weight's part plus that of the bias's; with ``joint`` that of the whole."""
    parts = [matrix] if joint or layer.bias is None else [matrix[:, :-1], matrix[:, -1]]
    return torch.stack([torch.linalg.vector_norm(part) for part in parts]).sum()
