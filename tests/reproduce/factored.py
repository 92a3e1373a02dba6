"""Memories kept as factors: SMMF's steps, written with the functions of :mod:`polyak.memory`."""

import numpy as np
import torch
from torch import Tensor

from polyak.memory import ema, factorize, reconstruct, square_shape
from tests.reproduce.vector import Unknown, Vector, array


def smmf(vector: Vector, execution: str = "eager", device: str = "cpu") -> dict[str, np.ndarray]:
    """The weights after each step; the signs are kept packed."""
    vector.read_all(
        "beta", "decay_rate", "eps", "growth_rate", "lr", "vector_reshape", "weight_decay", "weight_decay_mode"
    )  # fmt: skip
    if (mode := vector.option("weight_decay_mode", "adamw")) != "adamw":
        raise Unknown(f"weight_decay_mode = {mode!r} is not reproduced, only 'adamw'")
    return {f"p/{name}": array(torch.stack(_steps(vector, name, device))) for name in vector.tensors}


def _steps(vector: Vector, name: str, device: str) -> list[Tensor]:
    h = {key: vector.option(key) for key in ("beta", "decay_rate", "eps", "growth_rate", "lr", "weight_decay")}
    x, gradients = vector.input(f"p0/{name}", device), vector.input(f"g/{name}", device)
    # a tensor that is a vector even without its dimensions of size 1 keeps whole memories, unless told otherwise
    whole = x.squeeze().ndim == 1 and not vector.option("vector_reshape")
    first, second = _Memory(x, whole, signed=True), _Memory(x, whole, signed=False)
    went = []
    for t in range(1, vector.length + 1):
        g = gradients[t - 1].reshape(first.shape)
        x = x * (1 - h["lr"] * h["weight_decay"])
        v = ema(second.read(), g.square(), t ** h["decay_rate"])
        second.write(v)
        m = g
        if h["beta"] is not None:
            m = ema(first.read(), g, 1 - h["beta"] * h["growth_rate"] ** (t - 1))
            first.write(m)
        x = x - h["lr"] * (m / (v.sqrt() + h["eps"])).reshape(x.shape)
        went.append(x)
    return went


class _Memory:
    """A memory that is kept as factors, or whole."""

    def __init__(self, like: Tensor, whole: bool, signed: bool) -> None:
        self.shape = tuple(like.shape) if whole else square_shape(like.numel())
        self.whole, self.signed = whole, signed
        self.write(like.new_zeros(self.shape))

    def read(self) -> Tensor:
        return self.kept if self.whole else reconstruct(*self.kept)

    def write(self, value: Tensor) -> None:
        self.kept = value if self.whole else factorize(value, 1 if self.signed else None)


RULES = {"smmf": smmf}
