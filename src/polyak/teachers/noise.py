"""Random bits for stochastic rounding, alike wherever and on whatever device a run goes on."""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """A seed for each update; only these are drawn in sequence, on the CPU, so that one small state is all there is."""

    def __init__(self, seed: int) -> None:
        self._seeds = torch.Generator().manual_seed(seed)

    def next(self) -> Bits:
        """The bits of the next update."""
        return Bits(int(torch.randint(2**62, (), generator=self._seeds)))

    def get_state(self) -> Tensor:
        """To go on from with :meth:`set_state`."""
        return self._seeds.get_state()

    def set_state(self, state: Tensor) -> None:
        """Go on from a state, wherever it has been loaded to."""
        self._seeds.set_state(state.cpu())


class Bits:
    """Those of one update."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def draw(self, like: Tensor) -> Tensor:
        """16 random bits for each element."""
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device).manual_seed(self._seed)
        generator = self._generators[like.device]
        return torch.randint(0, 1 << 16, like.shape, generator=generator, device=like.device, dtype=torch.int32)
