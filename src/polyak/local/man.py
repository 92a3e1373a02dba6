"""MAN, the Momentum Auxiliary Network: a block is judged through an average of the next block's first layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from polyak.local.auxiliary import Auxiliary, AuxiliaryNet, Batch, Site, channels
from polyak.local.heads import DGL
from polyak.memory import ema_
from polyak.teachers.copies import deep_copy
from polyak.teachers.matching import is_averageable

Variant = Literal["code", "scale", "paper", "trained", "average"]
Init = Literal["copy", "fresh"]
Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class MAN(Auxiliary):
    r"""Momentum Auxiliary Network (Su et al., ECCV 2024, arXiv:2407.05623), and MAN++.

    The output :math:`x_j` of block :math:`j` goes through a layer :math:`E_j` whose weights are an exponential average
    of :math:`s_j`, the first layer of block :math:`j + 1`, and through a trained layer :math:`B_j` of the same shape;
    a head judges the sum:

    .. math:: u_j = B_j(x_j) + E_j(x_j), \qquad E_j \leftarrow m E_j + (1 - m)\, s_j

    The average takes :math:`s_j` as it is before the step of the same iteration. It covers weights, biases and the
    affine part of normalizations; running statistics of :math:`E_j` are its own. Gradients pass through :math:`E_j` to
    :math:`x_j`, and its weights get none.

    Variants:
        ``"code"``: the above, what the authors' code does and the published figures come from.
        ``"scale"``: MAN++, :math:`u_j = a_j B_j(x_j) + (2 - a_j) E_j(x_j)` with a trained scalar that starts at 1.
        ``"paper"``: the paper's text: one layer that is trained and after each step pulled towards :math:`s_j`, plus a
        trained bias for each output channel.
        ``"trained"``: :math:`u_j = B_j(x_j)`, no average: the control that the paper leaves out.
        ``"average"``: :math:`u_j = E_j(x_j)`, no trained layer: the paper's ablation.

    Differs from the authors' code: :math:`E_j` starts as a copy of :math:`s_j` (``init="fresh"`` starts it at random,
    as there). :math:`B_j` starts at random with the standard deviation of each of :math:`s_j`'s weights.

    Args:
        head: what judges :math:`u_j`, any recipe for auxiliary networks: ``DGL()``, ``InfoPro(...)``, ``Greedy()``.
        momentum: :math:`m` in [0, 1). The authors' default of 1 freezes :math:`E_j`; use a value near 1 instead.
        variant: see above.
        init: ``"copy"`` or ``"fresh"``, how :math:`E_j` (in the variant ``"paper"`` the one layer) starts.
        extra: trained layers after the sum, each like :math:`s_j` and at random, >= 0. MAN++ has one in vision
            transformers. They need :math:`s_j` to keep the shape.

    Raises:
        ValueError: if an argument is out of range.
    """

    head: Auxiliary = field(default_factory=DGL)
    momentum: float = 0.995
    variant: Variant = "code"
    init: Init = "copy"
    extra: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.head, Auxiliary):
            raise TypeError(f"head must be an auxiliary recipe such as DGL(), got {self.head!r}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum!r}")
        for name, value, allowed in (
            ("variant", self.variant, get_args(Variant)), ("init", self.init, get_args(Init)),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if self.extra < 0:
            raise ValueError(f"extra must be at least 0, got {self.extra!r}")

    def build(self, site: Site) -> MANNet:
        """See :class:`Auxiliary`."""
        source = site.next_layer
        u = site.outputs[site.cut + 1]
        if self.extra and u.shape != site.x.shape:
            raise ValueError(
                f"extra must be 0 at block {site.block}: the next layer changes the shape from "
                f"{tuple(site.x.shape[1:])} to {tuple(u.shape[1:])}"
            )
        extra = nn.Sequential(*(fresh(source) for _ in range(self.extra)))
        return MANNet(self, source, extra, self.head.build(replace(site, x=u)), u, site.block)


class MANNet(AuxiliaryNet):
    """The auxiliary network of :class:`MAN` for one block.

    Attributes:
        trained: :math:`B_j`; ``None`` in the variant ``"average"``.
        average: :math:`E_j`; ``None`` in the variant ``"trained"``. In ``"paper"`` both are the same layer.
        scale: :math:`a_j` of MAN++, else ``None``.
        bias: the bias of the variant ``"paper"``, else ``None``.
        extra: trained layers after the sum.
        head: what judges the sum.
    """

    def __init__(
        self, recipe: MAN, source: nn.Module, extra: nn.Sequential, head: AuxiliaryNet, u: Tensor, block: int
    ) -> None:
        super().__init__()
        start = copied if recipe.init == "copy" else fresh
        variant = recipe.variant
        self.momentum = recipe.momentum
        self.variant = variant
        self.average = None if variant == "trained" else start(source)
        if variant != "paper" and self.average is not None:
            self.average.requires_grad_(False)
        self.trained = fresh(source) if variant in ("code", "scale", "trained") else None
        self.scale = nn.Parameter(torch.ones((), dtype=u.dtype)) if variant == "scale" else None
        shape = (-1, *(1,) * (u.ndim - 2)) if u.ndim == 4 else (-1,)
        bias = torch.zeros(channels(u, block), dtype=u.dtype).view(shape)
        self.bias = nn.Parameter(bias) if variant == "paper" else None
        self.extra = extra
        self.head = head
        self._source = (source,)  # in a tuple: it belongs to the model, not to this network
        self._stepped = False
        self.needs_inputs = head.needs_inputs

    @property
    def source(self) -> nn.Module:
        """:math:`s_j`."""
        return self._source[0]

    def forward(self, x: Tensor) -> Any:
        """What the head says of :math:`u_j`."""
        return self.head(self.extra(self.mix(x)))

    def mix(self, x: Tensor) -> Tensor:
        """:math:`u_j` of :math:`x_j`."""
        if self.trained is None and self.average is not None:
            out = cast(Tensor, self.average(x))
            return out if self.bias is None else out + self.bias
        assert self.trained is not None
        if self.average is None:
            return cast(Tensor, self.trained(x))
        if self.scale is None:
            return cast(Tensor, self.trained(x) + self.average(x))
        return cast(Tensor, self.scale * self.trained(x) + (2 - self.scale) * self.average(x))

    def loss(self, said: Any, batch: Batch) -> Tensor:
        """See :class:`AuxiliaryNet`."""
        return self.head.loss(said, batch)

    def check(self, batch: Batch) -> None:
        """See :class:`AuxiliaryNet`."""
        self.head.check(batch)

    def begin(self) -> None:
        """In the variant ``"paper"``, pull the layer after the last step, when that has taken place."""
        self.head.begin()
        if self._stepped:
            self._stepped = False
            self.pull()

    def finish(self) -> None:
        """Average the next layer's weights as they are before the step."""
        self.head.finish()
        if self.variant == "paper":
            self._stepped = True
        elif self.average is not None:
            self.pull()

    def pull(self) -> None:
        """Move the average towards the next layer's weights."""
        ema_([e.detach() for e, _ in self._pairs()], [p.detach() for _, p in self._pairs()], 1.0 - self.momentum)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Averaged weights, each with its source; quantized ones do not move."""
        assert self.average is not None
        pairs = zip(self.average.parameters(), self.source.parameters(), strict=True)
        return [(e, p) for e, p in pairs if is_averageable(p)]

    def sources(self) -> list[Tensor]:
        """See :class:`AuxiliaryNet`."""
        own = [] if self.variant in ("trained", "paper") else [p for _, p in self._pairs()]
        return [*own, *self.head.sources()]

    def get_extra_state(self) -> Tensor:
        """Whether a step has been made that the variant ``"paper"`` has not yet pulled after.

        A tensor, which is all that some formats store.
        """
        return torch.tensor(self._stepped)

    def set_extra_state(self, state: Tensor | bool) -> None:
        """Put back what :meth:`get_extra_state` gave."""
        self._stepped = bool(state)


def copied(layer: Layer) -> Layer:
    """A deep copy whose parameters have no gradients, and are trainable, whether or not the layer is frozen.

    Where only some of a layer's parameters are frozen, these are constants, such as tables of positions or quantized
    weights under an adapter, and stay so.

    Raises:
        ValueError: if it cannot be copied.
    """
    layer = deep_copy(layer)
    weights = [p for p in layer.parameters() if is_averageable(p)]
    for parameter in weights if not any(p.requires_grad for p in weights) else ():
        parameter.requires_grad_()
    layer.zero_grad(set_to_none=True)
    return layer


@torch.no_grad()
def fresh(layer: Layer) -> Layer:
    """A copy started anew: what is a weight is drawn again from a normal distribution.

    Each keeps its standard deviation, whatever rule the layer was initialized by. Weights are the trainable parameters
    with two or more dimensions that are no vectors, so neither biases nor the affine part of normalizations, the scales
    ``(C, 1, 1)`` of a layer or those of ``weight_norm``: these are copied. Running statistics begin again.
    """
    layer = copied(layer)
    for module in layer.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and _is_weight(parameter, module):
                wide = parameter.float() if parameter.dtype in (torch.float16, torch.bfloat16) else parameter
                parameter.normal_(0.0, float(wide.std()))
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return layer


def _is_weight(parameter: Tensor, owner: nn.Module) -> bool:
    if parameter.numel() < 2 or parameter.ndim < 2:
        return False
    is_map = isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) and parameter is owner._parameters.get("weight")
    return is_map or sum(n > 1 for n in parameter.shape) >= 2
