"""MASHA1 and MASHA2: variational inequalities with compressed communication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Annotated, Any

from torch import Tensor

from polyak.declare import Argument, Paper
from polyak.optim.solvers.closures import check_finite
from polyak.optim.solvers.compressors import Contractive, Unbiased
from polyak.optim.solvers.variational import MASHA

Prox = Callable[[Tensor, float], Tensor]
PAPER = Paper(
    "Distributed Methods with Compressed Communication for Solving Variational Inequalities, with Theoretical "
    "Guarantees", 2022, "2110.03313",
)  # fmt: skip


class MASHA1(MASHA):
    """MASHA1, for unbiased compressors such as Rand-k.

    ::

        F_i(z) <- the gradient of worker i's loss, -gradient by what ascends;  F <- their mean;  w <- z, once
        zb <- tau * z + (1 - tau) * w
        zh <- prox(zb - lr * F(w))
        q <- Q_server(mean over i of Q_i(F_i(zh) - F_i(w)))
        z <- prox(zb - lr * F(w) - lr * q)
        with probability 1 - tau:  w <- z, and F(w) is exchanged in full

    For saddle points, min over some parameters and max over others, and other monotone problems. The differences that
    are compressed vanish at the solution, so the method goes all the way where plain compression stalls: the reference
    ``w`` is a momentum of negative weight. In one process here: the workers are closures. The coin is drawn from
    ``seed`` and the number of the step, so that all processes that share them draw the same; it needs no state.

    A problem that is no game enters as losses whose gradient is F, such as ``(F(z).detach() * z).sum()``. Where only
    some workers take part in a step, ``losses`` are theirs and ``full`` those of all.

    Follows the paper (arXiv:2110.03313), of which no code is known; the new ``z`` becomes the reference, and step sizes
    are to be tuned, since the theory's are far too small.

    Raises:
        TypeError: a compressor that is not :class:`~polyak.optim.Unbiased`.
        ValueError: an argument outside what is allowed, a compressor that says it is unbiased and is not, no default
            for ``tau`` because the compressor saves nothing.
    """

    slug = "masha1"
    paper = PAPER
    contract = Unbiased
    hint = "what is biased, as Top-k is, needs MASHA2"

    _: KW_ONLY
    prox: Annotated[
        Prox | None, Argument("``prox(x, lr)`` of each parameter, of a part h that all know; None: h = 0")
    ] = None

    def _begin(self, values: dict[str, Any]) -> None:
        self.__dict__["prox"] = values.pop("prox")
        super()._begin(values)

    def _proximal(self, values: list[Tensor]) -> list[Tensor]:
        if self.prox is None:
            return values
        found = [self.prox(x, lr) for x, lr in zip(values, self._per_param("lr"), strict=True)]
        for x, y in zip(values, found, strict=True):
            if not isinstance(y, Tensor) or y.shape != x.shape:
                raise ValueError(f"MASHA1: prox must return a tensor of shape {tuple(x.shape)}, got {y!r:.80}")
        check_finite(found, "the result of prox")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "prox": self.prox}


class MASHA2(MASHA):
    """MASHA2, for contractive compressors such as Top-k, with error feedback.

    ::

        as MASHA1 with prox(x) = x, but for
        q_i <- C_i(lr * (F_i(zh) - F_i(w)) + e_i);  e_i <- e_i + lr * (F_i(zh) - F_i(w)) - q_i
        q <- C_server(mean over i of q_i + e);  e <- e + mean over i of q_i - q
        z <- zh - q

    What is not sent is kept and sent later: a residual of the size of the model for each worker, one for the server.
    The number of workers stays what it was at the first step. It takes no ``prox``: error feedback needs h = 0.

    See :class:`MASHA1`. Follows the paper (arXiv:2110.03313), of which no code is known.

    Raises:
        TypeError: a compressor that is not :class:`~polyak.optim.Contractive`; ``prox``.
        ValueError: an argument outside what is allowed, no default for ``tau`` because the compressor saves nothing.
    """

    slug = "masha2"
    paper = PAPER
    contract = Contractive
    has_feedback = True
    hint = "unbiased ones that expand vectors, as Rand-k does, are for MASHA1"

    @classmethod
    def _unknown(cls, name: str) -> TypeError:
        if name == "prox":
            return TypeError("MASHA2 takes no prox: its error feedback needs h = 0; MASHA1 does")
        return super()._unknown(name)
