"""Cuts that need the least memory, auxiliary networks included."""

from __future__ import annotations

import torch
from torch import Tensor

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
        net = auxiliary.build(site).to(site.x.device, site.x.dtype)
        with undisturbed(net, training=True):
            _said, meter, x = metered(net, site.x, [*net.parameters(), *net.buffers()], inside=True)
            return meter.current - common(meter, x, held)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
