"""Delta gradient descent: linear layers that unlearn what they answered before they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from polyak.declare import NON_NEGATIVE, STATIC, STATIC_IF_ZERO, Argument, Lr, Momentum, Paper, Range
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.layers import find_layers
from polyak.optim.engine.rule import Options, Rule, factory
from polyak.optim.groups import REST
from polyak.optim.method import Method
from polyak.optim.vocabulary.balls import heavy_ball
from polyak.optim.vocabulary.weight import descend

Order = Literal["batch", "sequential"]


@factory
def delta_gradient(order: Order = "batch", normalize: bool = True) -> Rule:
    """The direction of delta gradient descent, from what flows through a linear layer (arXiv:2512.24695, eq. 56-57).

    ``u = (D^T X + penalty * W X^T X / n) / (1 + lr |x|^2)`` with the n rows x of inputs X and the loss's gradients D
    by the outputs; ``|x|^2`` is 1 with normalized rows, and the rows' mean without.

    Args:
        order: all rows at once, or ``"sequential"``, each at the weight that the rows before it left.
        normalize: bring each row of the inputs to length 1; a row of zeros stays.
    """

    def scalars(h: Options, t: int) -> dict[str, Any]:
        return {"lr": h["lr"], "penalty": h["penalty"]}

    def update(x: Flow, s: Any, c: Context) -> tuple[Flow, dict[str, Tensor]]:
        rows, slopes = c.inputs.to(x.p.dtype), c.output_gradients.to(x.p.dtype)
        square, count = rows.square().sum(1, keepdim=True), rows.shape[0]
        if normalize:
            rows, square = rows / torch.where(square > 0, square, 1.0).sqrt(), torch.ones_like(square)
        if order == "batch":
            return x.but(u=_direction(x.p, rows, slopes, c.penalty / count) / (1 + c.lr * square.mean())), {}
        u = torch.zeros_like(x.p)
        for i in range(count):  # the mean over rows is left to the loss, and each counts in full here
            one = slice(i, i + 1)
            w = x.p - c.lr * u
            u = u + _direction(w, rows[one], count * slopes[one], c.penalty) / (1 + c.lr * square[i])
        return x.but(u=u), {}

    return Rule(
        f"delta_gradient_{order}", update, scalars, hypers=DGD.reads("lr", "penalty"),
        inputs=("inputs", "output_gradients"),
    )  # fmt: skip


def _direction(w: Tensor, rows: Tensor, slopes: Tensor, penalty: Any) -> Tensor:
    answers: Tensor = penalty * ((w @ rows.T) @ rows)
    return slopes.T @ rows + answers


class DGD(Method):
    """Delta Gradient Descent (Behrouz et al., arXiv:2512.24695, eq. 56-57) for the linear layers of a module.

    ::

        x <- x / |x|  (each row of a layer's inputs);  e <- lr / (1 + lr)
        W <- W - e * (D^T X + penalty * W X^T X / n)
        (biases and other layers: w <- w - lr * g)

    D are the loss's gradients by the layer's outputs, where the loss is a mean over the n rows. It is gradient descent
    with rate e on the loss plus ``penalty / 2`` times the mean of ``|W x|^2``: a penalty on what the layer answers, so
    its fixed points are not those of the loss unless ``penalty=0``. ``momentum`` is a heavy ball on the update. ::

        optimizer = DGD(model, lr=0.1)
        loss_of(model(x), y).backward()   # the layers are listened to
        optimizer.step()

    An interpretation: the paper prints no value, and has no official code. ``normalize=False`` takes the mean of
    ``|x|^2`` for the constant that the paper supposes. Runs uncompiled. A weight that is used in several places, as
    embedding and head, is refused; ``exclude`` leaves it to gradient descent. What else the loss has of a layer's
    weight, such as a penalty, is not seen: D is all that counts. Give a DistributedDataParallel module itself: the rows
    of all its ranks are read.

    Raises:
        TypeError: if it is given no module.
        ValueError: an argument outside what is allowed, a weight that is shared or sharded (FSDP2), no linear layer.
        RuntimeError: in a step without a forward and backward pass through a layer that has a gradient.
    """

    slug = "nl-dgd"
    paper = Paper("Nested Learning: The Illusion of Deep Learning Architectures", 2025, "2512.24695")
    vectors = ["nl-dgd-card"]
    roles = ("matrix",)
    taps = (nn.Linear,)

    params: Annotated[nn.Module, Argument("the module whose parameters are trained")]  # type: ignore[assignment]
    lr: Annotated[Lr, Range(1e-3, 1.0)] = 0.1
    penalty: Annotated[float, NON_NEGATIVE, Range(1e-3, 1.0), "weight of the penalty on answers; the paper: 1"] = 1.0
    momentum: Annotated[Momentum, STATIC_IF_ZERO] = 0.0
    order: Annotated[Order, "all rows at once, or one after the other"] = "batch"
    normalize: Annotated[bool, STATIC, "inputs of length 1"] = True
    _: KW_ONLY
    exclude: Annotated[
        Sequence[str], Argument("patterns of names of linear layers that are left to gradient descent")
    ] = ()
    scaler: Annotated[torch.amp.GradScaler | None, Argument("the GradScaler that scales the loss, if one does")] = None

    def _begin(self, values: dict[str, Any]) -> None:
        module = values["params"]
        if not isinstance(module, nn.Module):
            raise TypeError(f"DGD: it listens to layers, and takes a module, got {type(module).__name__}")
        exclude, scaler = values.pop("exclude"), values.pop("scaler")
        linear = {id(layer.weight) for layer in find_layers(module, exclude, "DGD", self.taps)}
        roles: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], REST: []}
        for name, p in module.named_parameters():
            if p.requires_grad:
                roles["matrix" if id(p) in linear else REST].append((name, p))
        values["params"] = [{"params": listed, "role": role} for role, listed in roles.items() if listed]
        super()._begin(values)
        self.tap(module, exclude, scaler)

    @classmethod
    def recipe(cls, options: Options) -> Chain:
        ball = (heavy_ball(),) if options["momentum"] else ()
        first = () if options.get("role") == REST else (delta_gradient(options["order"], options["normalize"]),)
        return chain(*first, *ball, descend())
