"""Cuts that need the least memory, auxiliary networks included."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from polyak.local.auxiliary import Auxiliary, Site
from polyak.local.cut import balanced
from polyak.local.listing import Layers
from polyak.local.trace import Trace, common, metered, undisturbed


def site(listed: Layers, traced: Trace, example: Tensor, block: int, num_blocks: int, cut: int) -> Site:
    """Where the auxiliary network of a block that ends at ``cut`` stands."""
    outputs = traced.outputs if listed.stem is not None else (example, *traced.outputs)
    outputs = outputs[: len(listed.layers) + 1]
    num_outputs = traced.outputs[-1].shape[-1]
    return Site(block, num_blocks, cut, outputs[cut], example, outputs, num_outputs, listed)


def least_memory(
    listed: Layers, traced: Trace, example: Tensor, auxiliary: Auxiliary, num_blocks: int
) -> tuple[int, ...]:
    """Cuts whose largest block, its auxiliary network included, saves least for backward.

    A cut where the recipe refuses to build, or what it builds refuses to run, is taken only if there are no others.
    """
    stem, n = int(listed.stem is not None), len(listed.layers)
    costs = [float(b) for b in traced.saved[stem : stem + n]]
    costs[0] += traced.saved[0] if stem else 0
    costs[-1] += traced.saved[-1] if listed.head is not None else 0
    if not 1 < num_blocks < n:
        return balanced(costs, num_blocks)  # there is no choice, and nothing to find out
    starting = traced.shared[stem + 1 : stem + n]
    devices = [example.device.index] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        found = [
            _saved(auxiliary, site(listed, traced, example, 1, num_blocks, cut), traced.held[stem + cut - 1])
            for cut in range(1, n)
        ]
    dearer = sum(costs) + sum(starting) + sum(b for b in found if b is not None) + 1  # than any block
    return balanced(costs, num_blocks, [dearer if b is None else b for b in found], starting)


def _saved(auxiliary: Auxiliary, site: Site, held: bool) -> int | None:
    """Bytes that an auxiliary network adds to those of its block; ``None`` if there can be none."""
    try:
        return _added(auxiliary.build(site).to(site.x.device, site.x.dtype), site.x, held)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def _added(net: nn.Module, x: Tensor, held: bool) -> int:
    """Bytes that a network saves for backward of an input that is saved already if ``held``."""
    with undisturbed(net, training=True):
        _said, meter, x = metered(net, x, [*net.parameters(), *net.buffers()], inside=True)
        return meter.current - common(meter, x, held)


def dearness(listed: Layers, traced: Trace, cuts: tuple[int, ...], nets: Sequence[nn.Module]) -> str:
    """What to say where a block, its auxiliary network included, saves as much for backward as the whole network."""
    stem = int(listed.stem is not None)
    ends = [stem + cut for cut in cuts[:-1]]
    costs = [
        sum(traced.saved[a:b]) + (traced.shared[a] if a else 0) for a, b in pairwise((0, *ends, len(traced.saved)))
    ]
    for j, (end, net) in enumerate(zip(ends, nets, strict=True)):
        costs[j] += _added(net, traced.outputs[end - 1], traced.held[end - 1])
    largest = max(range(len(costs)), key=costs.__getitem__)
    whole = sum(traced.saved)
    if costs[largest] < whole:
        return ""
    return (
        f"these blocks save no memory: block {largest + 1} and its auxiliary network hold "
        f"{costs[largest] / max(whole, 1):.0%} of what the whole network would for a backward pass; a smaller "
        "auxiliary network, such as MAN(head=Greedy()), other cuts or larger inputs may"
    )
