"""Products of a batch's curvature with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from polyak.memory import flat, unflat

Kind = Literal["hessian", "ggn"]
Mode = Literal["train", "eval"]


class BatchCurvature:
    """The Hessian, or the generalised Gauss-Newton matrix, of the loss on one batch, as an operator on vectors.

    A vector lists the elements of all parameters that require gradients, in the order of ``named_parameters()``; a
    parameter that the loss does not depend on has zeros. One forward pass is made here, a backward pass (Gauss-Newton:
    three) at each product. ``.grad``, random states, batch norm's averages and the model's mode stay as they are. ::

        curvature = BatchCurvature(model, x, lambda y: cross_entropy(y, target))
        found = spectrum(curvature, curvature.size, steps=20)

    Args:
        model: what is differentiated.
        inputs: its input, or a tuple of inputs.
        loss: from the model's output to a scalar.
        kind: ``"hessian"``, or ``"ggn"``, ``J^T H J`` with J of the model's output and H of the loss by it.
        mode: ``"train"`` or ``"eval"`` for the pass; None leaves the model as it is. Batch norm's curvature differs.

    Raises:
        TypeError: if the loss is no scalar tensor, or for ``"ggn"`` the output no tensor.
        ValueError: if ``kind`` or ``mode`` is none of these, or no parameter requires gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        loss: Callable[[Any], Tensor],
        kind: Kind = "hessian",
        mode: Mode | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {list(get_args(Kind))}, got {kind!r}")
        if mode not in (None, *get_args(Mode)):
            raise ValueError(f"mode must be one of {list(get_args(Mode))} or None, got {mode!r}")
        self.params = [p for p in model.parameters() if p.requires_grad]
        if not self.params:
            raise ValueError("no parameter of the model requires gradients")
        self.kind = kind
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.enable_grad(), _as_it_was(model, mode):
            self._output = torch.func.functional_call(model, _buffers(model), arguments)
            self._loss = loss(self._output)
        if not isinstance(self._loss, Tensor) or self._loss.numel() != 1:
            raise TypeError(f"the loss must be a tensor of one element, got {self._loss!r}")
        if kind == "ggn" and not isinstance(self._output, Tensor):
            raise TypeError(f"for kind='ggn' the model's output must be a tensor, got {type(self._output).__name__}")
        inner = [self._output] if kind == "ggn" else self.params
        self._slopes = _gradients([self._loss], inner, keep=True)

    @property
    def size(self) -> int:
        """Elements of a vector."""
        return sum(p.numel() for p in self.params)

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector.

        Raises:
            ValueError: if the vector has another size.
            RuntimeError: if an operation of the model has no second derivative; names it.
        """
        if vector.numel() != self.size:
            raise ValueError(f"vector must have {self.size} elements, got {vector.numel()}")
        given = unflat(vector.detach(), self.params)
        with torch.enable_grad():
            found = self._gauss_newton(given) if self.kind == "ggn" else self._hessian(given)
        return flat(found).detach().to(vector.dtype)

    def _hessian(self, given: Sequence[Tensor]) -> list[Tensor]:
        return _gradients(self._slopes, self.params, given)

    def _gauss_newton(self, given: Sequence[Tensor]) -> list[Tensor]:
        # J v is the gradient by u of <J^T u, v>, which is linear in u
        u = torch.zeros_like(self._output, requires_grad=True)
        back = _gradients([self._output], self.params, [u], keep=True)
        (moved,) = _gradients(back, [u], given)
        (bent,) = _gradients(self._slopes, [self._output], [moved])
        return _gradients([self._output], self.params, [bent])


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], along: Sequence[Tensor] | None = None, keep: bool = False
) -> list[Tensor]:
    """Gradients of the outputs by the inputs, zeros where there is no path; ``keep``: to be differentiated again."""
    along = [torch.ones_like(o) for o in outputs] if along is None else along
    listed = [(o, v) for o, v in zip(outputs, along, strict=True) if o.requires_grad]
    if not listed:
        return [torch.zeros_like(i) for i in inputs]
    try:
        found = torch.autograd.grad(
            [o for o, _ in listed], list(inputs), [v for _, v in listed],
            create_graph=keep, retain_graph=True, allow_unused=True,
        )  # fmt: skip
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise RuntimeError(
            f"an operation of the model has no second derivative: {error}. Fused attention has one in "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from error
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@contextmanager
def _as_it_was(model: nn.Module, mode: Mode | None) -> Iterator[None]:
    """Modes of all modules and random states are put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(sorted(d for d in devices if d is not None)):
        if mode is not None:
            model.train(mode == "train")
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
