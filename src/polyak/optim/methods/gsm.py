"""GSM: momentum SGD that drives all but the most useful weights to zero while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from polyak.declare import STATIC, Interval, Lr, Momentum, Nesterov, Paper, Range, WeightDecay
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.kernels import high
from polyak.optim.engine.member import is_sharded, local, placed_like
from polyak.optim.engine.ranking import Values, kth_largest
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.weight import decay, descend

Prunable = Annotated[bool | None, (None, True, False), STATIC, "whether weights are pruned; None: of 2 or 4 dimensions"]


def _is_prunable(shape: torch.Size, option: bool | None) -> bool:
    return len(shape) in (2, 4) if option is None else option


@factory
def most_salient(prunable: bool | None = None) -> Rule:
    """Keep of the gradient what is at least a threshold in ``|g * p|``; the optimizer finds it over all tensors (GSM).

    Args:
        prunable: whether tensors take part; None: those of 2 or 4 dimensions.
    """

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        kept = (x.u * x.p).abs().double() >= c.threshold
        c.note("active_share", kept.to(x.u.dtype))
        return x.but(u=torch.where(kept, x.u, 0.0), g=torch.where(kept, x.g, 0.0)), {}

    return Rule(
        "most_salient", update, applies=lambda shape: _is_prunable(shape, prunable), inputs=("threshold",)
    )  # fmt: skip


@factory
def masked(prunable: bool | None = None) -> Rule:
    """Weights that were pruned stay 0: ``w <- mask * w``, behind the step."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        return x.but(w=x.w * s.mask), {"mask": s.mask}

    slots = (Slot("mask", "1 where a weight stays, 0 where it was pruned", dtype="param", initial=1.0),)
    return Rule("masked", update, slots=slots, applies=lambda shape: _is_prunable(shape, prunable), writes="decay")


class GSM(Method):
    """Global sparse momentum SGD (Ding et al., arXiv:1909.12778): pruning by training, without finetuning.

    ::

        g <- g where |g * p| is among the largest nonzero_ratio of all prunable weights, else 0
        z <- momentum * z + g + weight_decay * p
        p <- p - lr * z      (nesterov: lr * (g + weight_decay * p + momentum * z))

    Weights whose gradient is cut feel decay and momentum alone and shrink to nearly 0; :meth:`prune` then sets all but
    the largest to exactly 0, after which steps leave them there. In S steps a cut weight shrinks by about
    ``exp(-lr * weight_decay * S / (1 - momentum))``, see :meth:`shrinkage`: it takes a high momentum.

    The ranking is over all prunable tensors of all groups; ties at its end are kept. Prunable are weights of 2 or 4
    dimensions; ``prunable=False`` in a group spares it (embeddings), True adds it. Under a GradScaler ``unscale_`` is
    not needed: a factor on all gradients does not change the ranking. A gradient that is not finite has no rank, so
    ``check_finite`` is on.

    Raises:
        ValueError: an argument outside what is allowed, groups of different ``nonzero_ratio``; at a step, one that
            keeps no weight.
    """

    slug = "gsm"
    one_for_all = ("nonzero_ratio", "pruned")
    family = "sparse"
    paper = Paper("Global Sparse Momentum SGD for Pruning Very Deep Neural Networks", 2019, "1909.12778")
    vectors = ["gsm"]

    lr: Annotated[Lr, Range(1e-4, 1e-1)] = 5e-3
    momentum: Annotated[Momentum, Range(0.9, 0.99)] = 0.98
    weight_decay: Annotated[WeightDecay, Range(1e-5, 1e-2), "L2 regularization, of cut weights too"] = 1e-4
    nesterov: Nesterov = False
    nonzero_ratio: Annotated[
        float, Interval(0.0, 1.0, low_open=True, high_open=True), "share of the prunable weights that stays"
    ] = 0.1
    prunable: Prunable = None
    pruned: Annotated[bool, "train what a mask has left, without ranking; set by prune()"] = False
    check_finite = True

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        which = options["prunable"]
        sgd = (decay("coupled"), heavy_ball(nesterov=options["nesterov"]), descend())
        return chain(*sgd, masked(which)) if options["pruned"] else chain(most_salient(which), *sgd)

    def measure(self) -> dict[str, Tensor]:
        """The threshold: the Q-th largest ``|g * p|``, Q the share of the prunable weights that stays."""
        params = self._prunable()
        if not params:
            device = self.param_groups[0]["params"][0].device if self.param_groups[0]["params"] else "cpu"
            return {"threshold": torch.zeros((), dtype=torch.float64, device=device)}
        return {"threshold": _threshold(params, [_salience(p) for p in params], self._left(params)).double()}

    def _prunable(self) -> list[Tensor]:
        return [
            p for group in self.param_groups for p in group["params"] if _is_prunable(p.shape, group["prunable"])
        ]  # fmt: skip

    def _left(self, params: Sequence[Tensor]) -> int:
        """How many weights stay."""
        ratio, size = self.param_groups[0]["nonzero_ratio"], sum(p.numel() for p in params)
        if int(ratio * size) < 1:
            raise ValueError(f"GSM: nonzero_ratio = {ratio!r} keeps no weight of {size}")
        return int(ratio * size)

    def shrinkage(self, steps: int) -> float:
        """``lr * weight_decay * steps / (1 - momentum)``, the least over groups; warns below 5.

        A cut weight shrinks by ``exp(-shrinkage)``; under 5 pruning takes away weights that have not gone to zero.
        """
        found = min(g["lr"] * g["weight_decay"] * steps / (1 - g["momentum"]) for g in self.param_groups)
        if found < 5:
            self.advise(
                f"in {steps:,} steps cut weights shrink by exp(-{found:.2g}) alone and do not reach zero; "
                "raise momentum, weight_decay or steps"
            )
        return float(found)

    @torch.no_grad()
    def prune(self, masks: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Set all but the largest prunable weights to 0, and leave them there in steps to come.

        Exactly ``int(nonzero_ratio * N)`` of N stay, of equal ones the first. The masks are kept in the state, so that
        a resumed run has them; the groups say ``pruned``.

        Args:
            masks: Booleans to prune by instead, one a parameter in the order of the groups: those of another run, for a
                lottery ticket's original weights.

        Returns:
            What stays, one a parameter.

        Raises:
            ValueError: masks of another number or shape, sharded weights, a ratio that keeps none; nothing has changed.
        """
        listed = [(p, _is_prunable(p.shape, g["prunable"])) for g in self.param_groups for p in g["params"]]
        if any(is_sharded(p) for p, _ in listed):
            raise ValueError("GSM: prune() takes whole weights, and some are sharded")
        if masks is None:
            masks = _largest([p for p, _ in listed], [prunes for _, prunes in listed], self._left(self._prunable()))
        shapes = [tuple(p.shape) for p, _ in listed]
        if [tuple(m.shape) for m in masks] != shapes or any(m.dtype != torch.bool for m in masks):
            raise ValueError(f"GSM: masks must be Booleans of shapes {shapes}, got {[tuple(m.shape) for m in masks]}")
        for (p, prunes), mask in zip(listed, masks, strict=True):
            if prunes:
                p.mul_(mask)
                self.state[p]["mask"] = mask.to(p.dtype).contiguous()
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, dtype=high(p.dtype)))
        for group in self.param_groups:
            group["pruned"] = True
        return list(masks)


def _salience(p: Tensor) -> Values:
    """``|g * p|`` of what lies here, in the precision that the rule computes it in; 0 without a gradient."""
    value = local(p).reshape(-1)
    # what is sparse has no rank either, and is refused by the step
    dense = p.grad is not None and p.grad.layout is torch.strided
    grad = placed_like(p.grad, p).reshape(-1) if dense else None
    dtype = high(p.dtype)

    def read(part: slice) -> Tensor:
        if grad is None:
            return torch.zeros_like(value[part], dtype=dtype)
        return (grad[part].to(dtype) * value[part].to(dtype)).abs()

    return read


def _size(p: Tensor) -> Values:
    """``|p|``."""
    value = local(p).reshape(-1)
    return lambda part: value[part].abs()


def _threshold(params: Sequence[Tensor], values: Sequence[Values], k: int) -> Tensor:
    wide = any(p.dtype == torch.float64 for p in params)
    sizes = [local(p).numel() for p in params]
    return kth_largest(params, sizes, values, k, torch.float64 if wide else torch.float32)


def _largest(params: Sequence[Tensor], prunes: Sequence[bool], k: int) -> list[Tensor]:
    """Masks of exactly k of the largest of those that are pruned, and all of the others."""
    listed = [p for p, one in zip(params, prunes, strict=True) if one]
    limit = _threshold(listed, [_size(p) for p in listed], k)
    left = k - int(sum((p.detach().abs() > limit.to(p.device)).sum().cpu() for p in listed))
    masks = []
    for p, one in zip(params, prunes, strict=True):
        size = p.detach().abs()
        equal = (size == limit.to(p.device)).reshape(-1)
        first = equal & (equal.cumsum(0) <= left)
        masks.append((size > limit.to(p.device)) | first.view(p.shape) if one else torch.ones_like(size).bool())
        left -= int(first.sum()) if one else 0
    return masks
