"""Delta Momentum: a momentum that erases what it held along the gradient before it writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from polyak.declare import NON_NEGATIVE, Eps, Lr, Momentum, Paper, Range, WeightDecay
from polyak.memory.averages import heavy_ball as roll
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow, Places
from polyak.optim.engine.rule import Options, Rule, Slot, factory
from polyak.optim.method import Method
from polyak.optim.vocabulary.matrices import orthogonalize
from polyak.optim.vocabulary.weight import decay, subtract, times_lr

Feature = Literal["identity", "sign", "cube", "signed_sqrt"]


@factory
def features(form: Feature = "sign") -> Rule:
    """What of a gradient is written: ``sign(u)``, or ``"cube"`` ``u^3 / mean(u^2)``, or the root with its sign."""

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        if form == "sign":
            return x.but(u=torch.sign(x.u)), {}
        if form == "signed_sqrt":
            return x.but(u=torch.sign(x.u) * x.u.abs().sqrt()), {}
        if form == "cube":
            square = c.mean(x.u * x.u)
            return x.but(u=x.u * (x.u * x.u / torch.where(square > 0, square, 1.0))), {}
        return x, {}

    return Rule(f"features_{form}", update)


@factory
def delta_memory(normalize_keys: bool = True) -> Rule:
    """A linear associative memory under the delta rule: ``b <- momentum * b - delta * (b K^T) K + u``, reads out ``b``.

    The key K is the gradient as a matrix (out, rest), a vector as one row; what is written is the direction so far
    (arXiv:2512.24695, eq. 48-49).

    Args:
        normalize_keys: divide K by its Frobenius norm, plus ``eps``; off is the paper's form.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"momentum": h["momentum"], "delta": h["delta"], "eps": h["eps"]}

    def update(x: Flow, s: Any, c: Places) -> tuple[Flow, dict[str, Tensor]]:
        key = x.g / (c.sum(x.g * x.g).sqrt() + c.eps) if normalize_keys else x.g
        held = c.matrix(_along, s.momentum_buffer, key)
        b = roll(s.momentum_buffer, x.u, c.momentum) - c.delta * held
        return x.but(u=c.place("momentum_buffer", b)), {"momentum_buffer": b}

    slots = (Slot("momentum_buffer", "the associative memory", "signed"),)
    known = NLDelta.reads("momentum", "delta", "eps")
    return Rule("delta_memory", update, scalars, slots, known, places=("momentum_buffer",))


def _along(memories: Tensor, keys: Tensor) -> Tensor:
    """``(b K^T) K`` of stacks of tensors: what the memories answer to the keys."""
    rows = keys.shape[1] if keys.ndim > 2 else 1
    b, k = (t.reshape(t.shape[0], rows, -1) for t in (memories, keys))
    return ((b @ k.mT) @ k).reshape(keys.shape)


@factory
def _times_lr_of_matrices() -> Rule:
    """The lr of a step along a polar factor, which has none in it."""
    return replace(times_lr(), applies=lambda shape: len(shape) >= 2, origin=None)


class NLDelta(Method):
    """Delta Momentum (Behrouz et al., arXiv:2512.24695, eq. 48-49): momentum as a memory learned by the delta rule.

    ::

        K <- G / (|G| + eps)
        B <- momentum * B - delta * (B K^T) K + lr * P(G)
        W <- W * (1 - lr * weight_decay) - B

    G is a gradient as a matrix (out, rest); a vector is one row. What B held along the gradient is damped before the
    gradient is written: under a constant gradient a row's B is ``lr * G / (1 - momentum + delta)``, under one that
    turns stale parts vanish fast. ``delta=0`` is SGD's heavy ball with the lr in the buffer. ``feature`` is the map P
    (eq. 47, 51). ``orthogonalize`` steps matrices by ``lr * NewtonSchulz(B)``: with ``delta=0`` Muon. Any other P:
    ``chain(your_rule, rules.delta_memory(), ...)``.

    An interpretation: there is no official code, and no value is printed. ``normalize_keys=False`` is the paper's K =
    G, which diverges where ``delta * |G|_2^2 > 1 + momentum``. Whether it beats the heavy ball
    on the paper's own landscape hangs on the rate.

    Raises:
        ValueError: an argument outside what is allowed; ``delta`` above ``1 + momentum`` with normalized keys.
    """

    slug = "nl_delta"
    family = "momentum"
    paper = Paper("Nested Learning: The Illusion of Deep Learning Architectures", 2025, "2512.24695")
    vectors = ["nl-delta-card"]
    evidence = "interpretation"

    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.02
    momentum: Momentum = 0.9
    delta: Annotated[float, NON_NEGATIVE, Range(1e-2, 1.0), "how much is erased; up to 1 + momentum"] = 0.1
    eps: Annotated[Eps, "added to the norm of the gradient"] = 1e-8
    weight_decay: Annotated[WeightDecay, Range(1e-4, 1e-1)] = 0.0
    normalize_keys: Annotated[bool, "keys of norm 1"] = True
    feature: Annotated[Feature, "what of the gradient is written"] = "identity"
    orthogonalize: Annotated[bool, "step matrices by the polar factor of the memory"] = False

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        written = () if options["feature"] == "identity" else (features(options["feature"]),)
        polar = (orthogonalize(adjust_lr=None, leave_vectors=True), _times_lr_of_matrices())
        return chain(
            decay("decoupled"), *written, times_lr(), delta_memory(options["normalize_keys"]),
            *(polar if options["orthogonalize"] else ()), subtract(),
        )  # fmt: skip

    def check_options(self, group: Options) -> None:
        """The rule is stable up to 1 + momentum for keys of norm 1; for others it depends on the gradients."""
        if not group["normalize_keys"]:
            self.advise("normalize_keys=False diverges where delta times the square of |G|_2 is above 1 + momentum")
        elif float(group["delta"]) > 1 + float(group["momentum"]):
            allowed = f"[0, 1 + momentum] = [0, {1 + float(group['momentum']):g}] with normalized keys"
            raise ValueError(f"{self._owner()}: delta must be in {allowed}, got {group['delta']!r}")
