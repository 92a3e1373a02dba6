"""Layers with a low-rank update: peft's, or anybody's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class LowRank:
    """A frozen weight and its low-rank update ``scale * b @ a``.

    Args:
        name: what errors call it.
        weight: (out, in), or a convolution's (out, in, ...), which is seen as (out, rest).
        a: (r, in), or (r, in, ...).
        b: (out, r), or (out, r, 1, ...).
        scale: factor on the update, alpha / r.
        transposed: the weight is (in, out), as GPT-2 has it.
    """

    name: str
    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    transposed: bool = False


def lora_layers(model: nn.Module) -> Iterator[LowRank]:
    """The linear and convolutional LoRA layers of a model adapted by peft, with their one active adapter.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: several active adapters, or a layer that is more than ``W + s B A``: DoRA, a bias of its own, an
            embedding, a grouped convolution.
    """
    lora = _peft()
    for name, module in model.named_modules():
        if not isinstance(module, lora.LoraLayer):
            continue
        active = [adapter for adapter in module.active_adapters if adapter in module.scaling]
        if not active:
            continue
        if len(active) > 1:
            raise ValueError(f"PeriodicLoRA: {name} has several active adapters, {active}; which one is unloaded?")
        adapter, base = active[0], module.get_base_layer()
        more = [
            (adapter in module.lora_variant, "a variant of LoRA, as DoRA"),
            (module.lora_bias.get(adapter, False), "a LoRA bias"),
            (adapter not in module.lora_A, "no linear layer or convolution"),
            (getattr(base, "groups", 1) != 1, "a grouped convolution"),
        ]
        for is_so, what in more:
            if is_so:
                raise ValueError(f"PeriodicLoRA: {name} is {what}, which is not unloaded")
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        turned = bool(getattr(module, "fan_in_fan_out", False))
        yield LowRank(name, base.weight, a, b, float(module.scaling[adapter]), turned)


def _peft() -> Any:
    try:
        from peft.tuners import lora
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "PeriodicLoRA reads a model by peft, which is not installed: pip install 'polyak[lora]'"
        ) from missing
    return lora


def merged_layer(model: nn.Module) -> str:
    """The first layer whose adapter is merged into its weight."""
    return next((name for name, module in model.named_modules() if getattr(module, "merged_adapters", None)), "")


def once(layers: Iterable[LowRank]) -> Iterator[LowRank]:
    """Layers that are listed twice, once."""
    seen: set[tuple[int, int, int]] = set()
    for layer in layers:
        key = (id(layer.weight), id(layer.a), id(layer.b))
        if key not in seen:
            seen.add(key)
            yield layer


def check(layers: list[LowRank], optimizer: torch.optim.Optimizer) -> None:
    """Refuse layers that cannot be unloaded, or whose factors the optimizer does not train."""
    if not layers:
        raise ValueError("PeriodicLoRA: there is no LoRA layer")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owner: dict[int, str] = {}
    for layer in layers:
        _check_tensors(layer)
        if id(layer.a) not in trained or id(layer.b) not in trained:
            raise ValueError(f"PeriodicLoRA: the optimizer does not train the factors of {layer.name}")
        if id(layer.weight) in owner:
            raise ValueError(
                f"PeriodicLoRA: {owner[id(layer.weight)]} and {layer.name} share a weight and have factors of their "
                "own: what one unloads would change the other"
            )
        owner[id(layer.weight)] = layer.name


def _check_tensors(layer: LowRank) -> None:
    w, a, b = layer.weight, layer.a, layer.b
    if any(hasattr(t, "placements") for t in (w, a, b)):
        raise TypeError(f"PeriodicLoRA: {layer.name} is sharded, and the product of its factors crosses ranks")
    if not w.is_floating_point() or hasattr(w, "quant_state"):
        raise TypeError(f"PeriodicLoRA: the weight of {layer.name} is quantized ({w.dtype}); de-quantize it first")
    if w.requires_grad:
        raise ValueError(f"PeriodicLoRA: the weight of {layer.name} is trained itself; freeze it")
    if min(w.ndim, a.ndim, b.ndim) < 2:
        raise ValueError(f"PeriodicLoRA: {layer.name} has fewer than 2 dimensions")
    shape = w.t().shape if layer.transposed else w.shape
    rows, rest = shape[0], shape[1:].numel()
    if b.shape[0] != rows or b[0].numel() != a.shape[0] or a[0].numel() != rest:
        raise ValueError(
            f"PeriodicLoRA: factors of {tuple(b.shape)} and {tuple(a.shape)} do not make the update of {layer.name} "
            f"of {tuple(shape)}"
        )
