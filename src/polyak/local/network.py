"""A network with its cuts and its auxiliary networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from polyak.local.auxiliary import Auxiliary, AuxiliaryNet
from polyak.local.balance import dearness, least_memory, site
from polyak.local.cut import check_cuts, check_num_blocks, uniform
from polyak.local.listing import Layers, chained, joined, layers, split_head
from polyak.local.man import MAN
from polyak.local.trace import SingleValueNorms, Trace, trace, undisturbed

Cuts = Literal["balanced", "uniform"] | Sequence[int]


class LocalNetwork(nn.Module):
    r"""A network cut into gradient-isolated blocks, with an auxiliary network for each block but the last.

    The blocks consist of the model's own modules: training them trains the model, whose ``state_dict`` is that of the
    plain network. Calling a ``LocalNetwork`` calls the model; :func:`local_backward` trains it.

    A warning says if the blocks save no memory, as where auxiliary networks are large beside the network.

    Building it runs two samples of ``example`` through the layers, one layer at a time, and changes nothing in the
    model: it learns the shapes and the bytes that each layer saves for backward, and makes sure that the layers
    compute what the model computes, so that a skip connection across a cut is refused.

    Args:
        model: a model whose layers :func:`layers` can list, or a list of blocks, whose chain then is the model. A
            block that is a ``Sequential`` is a list of layers, any other module is one layer.
        num_blocks: :math:`K`, from 1 to the number of layers, or one more if there is a stem (which then is a block of
            its own). 1 is plain backpropagation, with a warning. Left out where ``cuts`` or blocks say it.
        auxiliary: the recipe for the auxiliary networks; :class:`MAN` by default.
        example: a batch of at least 2 samples as the model takes it, on the model's device.
        cuts: ``"balanced"`` makes the block that saves most bytes for backward, its auxiliary network included, as
            small as can be (for which it builds one behind every layer), ``"uniform"`` gives the blocks equally many
            layers; or the numbers :math:`c_1 < \dots < c_K` of layers before each cut, of which
            the last is the number of layers, and the first may be 0 to make the stem a block of its own.
        layers: the layers, where :func:`layers` cannot list them.

    Attributes:
        model: the plain network.
        blocks: the blocks in order, each a ``Sequential`` of modules of the model.
        auxiliaries: the auxiliary networks of blocks 1 to :math:`K - 1`.
        cuts: :math:`c_1, \dots, c_K`.
        listed: the layers as they were listed.
        num_classes: C of a model's output (N, C) for N samples; ``None`` for other shapes.

    Raises:
        TypeError: if the layers cannot be listed.
        ValueError: if an argument is out of range; if blocks or layers do not chain (names the first that does not
            accept its input); if they do not compute what the model computes; if blocks share a parameter; if an
            auxiliary network works in place on the output of its block.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        num_blocks: int | None = None,
        auxiliary: Auxiliary | None = None,
        *,
        example: Tensor,
        cuts: Cuts = "balanced",
        layers: Layers | None = None,
    ) -> None:
        super().__init__()
        auxiliary = MAN() if auxiliary is None else auxiliary
        if not isinstance(auxiliary, Auxiliary):
            raise TypeError(f"auxiliary must be a recipe such as MAN() or DGL(), got {auxiliary!r}")
        if example.ndim < 2 or example.shape[0] < 2:
            raise ValueError(f"example must be a batch of at least 2 samples, got shape {tuple(example.shape)}")
        example = example.detach()[:2].clone()  # what is saved for backward is counted by storage
        self.model, self.listed, names, fixed_cuts = _chain(model, num_blocks, cuts, layers)
        units = [u for u in (self.listed.stem, *self.listed.layers, self.listed.head) if u is not None]
        with undisturbed(self.model, training=True), SingleValueNorms(self.model) as lonely:
            traced = trace(units, names, example)
        _compare(self.model, units, example)
        self.cuts = fixed_cuts or _choose(self.listed, num_blocks, cuts, traced, example, auxiliary)
        last = traced.outputs[-1]
        self.num_classes = last.shape[1] if last.ndim == 2 and len(last) == len(example) else None
        self.blocks = tuple(_blocks(self.listed, self.cuts))
        _refuse_shared(self.blocks)
        self._places = list(_places(self.model, self.blocks))
        if len(self.blocks) == 1:
            warnings.warn("one block is plain backpropagation, without auxiliary networks", UserWarning, stacklevel=2)
        self.auxiliaries = nn.ModuleList(self._build(auxiliary, traced, example, lonely))
        self._lonely = [type(m).__name__ for m in lonely.found]
        if len(self.blocks) > 1 and (dear := dearness(self.listed, traced, self.cuts, list(self.auxiliaries))):
            warnings.warn(dear, UserWarning, stacklevel=2)

    def _build(
        self, auxiliary: Auxiliary, traced: Trace, example: Tensor, lonely: SingleValueNorms
    ) -> Iterator[AuxiliaryNet]:
        """Auxiliary networks, each tried on the example."""
        for j, cut in enumerate(self.cuts[:-1], 1):
            place = site(self.listed, traced, example, j, len(self.cuts), cut)
            x = place.x
            net = auxiliary.build(place).to(x.device, x.dtype)
            with undisturbed(net, training=True), SingleValueNorms(net) as more, torch.no_grad():
                version = x._version
                net(x)
            if x._version != version:
                raise ValueError(
                    f"the auxiliary network of block {j} changes the block's output in place, which the next block "
                    "takes as well; its first operation, or that of the layer it is like, must have inplace=False"
                )
            lonely.found += more.found
            yield net

    @property
    def num_blocks(self) -> int:
        """:math:`K`."""
        return len(self.blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the plain model computes; no auxiliary network takes part."""
        return cast(Tensor, self.model(inputs))

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer is to get: the parameters of model and auxiliary networks, but for averages."""
        return (p for p in self.parameters() if p.requires_grad)

    def check_batch(self, inputs: Tensor) -> None:
        """Refuse a batch of one where a batch normalization in training would have a single value to average.

        Raises:
            ValueError: in that case.
        """
        if self.training and self._lonely and inputs.shape[0] == 1:
            raise ValueError(
                f"inputs must be a batch of at least 2 in training, got 1: {len(self._lonely)} batch normalizations "
                f"(the first a {self._lonely[0]}) would see one value for each channel"
            )

    def check_modules(self) -> None:
        """Refuse a model whose modules were replaced, as by ``SyncBatchNorm.convert_sync_batchnorm``, after the cut.

        Raises:
            RuntimeError: in that case; names the first. The blocks would go on training the old one.
        """
        for parent, name, child in self._places:
            if (now := parent._modules.get(name)) is not child:
                raise RuntimeError(
                    f"{name} of the {type(parent).__name__}, a {type(child).__name__} when the model was cut, has been "
                    f"replaced by a {type(now).__name__}, which the blocks do not have; convert the model first, then "
                    "make the LocalNetwork"
                )

    def get_extra_state(self) -> Tensor:
        """The cuts; the plain model's ``state_dict`` does not have them."""
        return torch.tensor(self.cuts)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the cuts of another network; its auxiliary networks were trained for other blocks.

        Raises:
            ValueError: in that case. Loading comes here first, so nothing of this network has been changed then.
        """
        cuts = state.tolist()
        if tuple(cuts) != self.cuts:
            raise ValueError(
                f"the checkpoint has the cuts {cuts}, this network {list(self.cuts)}; pass cuts={cuts}, "
                "or load the model's part of the checkpoint alone, into network.model"
            )

    def check_state(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse a state of other cuts, names or shapes.

        Raises:
            ValueError: in that case; names the first.
        """
        here = self.state_dict()
        if "_extra_state" in state_dict:  # another number of blocks has other names too, but this says why
            self.set_extra_state(state_dict["_extra_state"])
        if odd := sorted(state_dict.keys() ^ here.keys()):
            where = "is only in the checkpoint" if odd[0] in state_dict else "is not in the checkpoint"
            raise ValueError(f"the checkpoint is of another network or other auxiliary networks: {odd[0]} {where}")
        for name, value in here.items():
            shape = getattr(state_dict[name], "shape", None)
            if isinstance(value, Tensor) and value.shape != shape:
                shapes = f"{shape and tuple(shape)} in the checkpoint and {tuple(value.shape)} here"
                raise ValueError(f"the checkpoint is of another network: {name} has the shape {shapes}")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module``, but a state with other cuts is refused, and a strict load that fails changes nothing.

        Raises:
            ValueError: on other cuts; if ``strict``, also on other names or shapes.
        """
        if strict:
            self.check_state(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def extra_repr(self) -> str:
        """The cuts."""
        return f"num_blocks={self.num_blocks}, cuts={list(self.cuts)}"


def _chain(
    model: nn.Module | Sequence[nn.Module], num_blocks: int | None, cuts: Cuts, given: Layers | None
) -> tuple[nn.Module, Layers, list[str], tuple[int, ...] | None]:
    """The model, its layers, a name for each unit, and the cuts where blocks give them."""
    if isinstance(model, nn.Module):
        listed = layers(model) if given is None else given
        names = [f"layer {i} ({type(m).__name__})" for i, m in enumerate(listed.layers, 1)]
        stem = ["the stem"] if listed.stem is not None else []
        return model, listed, [*stem, *names, *(["the head"] if listed.head is not None else [])], None
    blocks = list(model)
    if not blocks or not all(isinstance(b, nn.Module) for b in blocks):
        raise ValueError(f"blocks must be at least one module, got {model!r}")
    if given is not None or cuts != "balanced" or num_blocks not in (None, len(blocks)):
        raise ValueError(f"num_blocks, cuts and layers must be left out where {len(blocks)} blocks are given")
    items = [list(b) if isinstance(b, nn.Sequential) else [b] for b in blocks]
    items[-1], head = split_head(items[-1])
    groups = [chained(block) for block in items]
    ends = tuple(sum(len(g) for g in groups[: j + 1]) for j in range(len(groups)))
    listed = Layers([m for group in groups for m in group], head=joined(head))
    names = [f"block {j} ({type(m).__name__})" for j, group in enumerate(groups, 1) for m in group]
    return nn.Sequential(*blocks), listed, [*names, *([f"block {len(blocks)} (its head)"] if head else [])], ends


def _choose(
    listed: Layers, num_blocks: int | None, cuts: Cuts, traced: Trace, example: Tensor, auxiliary: Auxiliary
) -> tuple[int, ...]:
    """The cuts of a model."""
    n, stem = len(listed.layers), listed.stem is not None
    if not isinstance(cuts, str):
        found = check_cuts(cuts, n, stem)
        if num_blocks not in (None, len(found)):
            raise ValueError(f"num_blocks must be {len(found)} for {len(found)} cuts, got {num_blocks!r}")
        return found
    if cuts not in ("balanced", "uniform"):
        raise ValueError(f"cuts must be 'balanced', 'uniform' or a list of numbers of layers, got {cuts!r}")
    if num_blocks is None:
        raise ValueError("num_blocks must be given where cuts is not a list")
    check_num_blocks(n + stem, num_blocks)
    if num_blocks == n + 1:
        return tuple(range(n + 1))
    if cuts == "uniform":
        return uniform(n, num_blocks)
    return least_memory(listed, traced, example, auxiliary, num_blocks)


def _blocks(listed: Layers, cuts: tuple[int, ...]) -> Iterator[nn.Sequential]:
    start = 0
    for j, end in enumerate(cuts):
        stem = [listed.stem] if j == 0 and listed.stem is not None else []
        head = [listed.head] if j == len(cuts) - 1 and listed.head is not None else []
        yield nn.Sequential(*stem, *listed.layers[start:end], *head)
        start = end


def _places(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and child, wherever the model has a module of a block, or one around such a module."""
    held = {m for block in blocks for m in block.modules()}
    for parent in model.modules():
        for name, child in parent.named_children():
            if any(m in held for m in child.modules()):
                yield parent, name, child


def _compare(model: nn.Module, units: Sequence[nn.Module], example: Tensor) -> None:
    """Refuse layers that do not compute what the model computes."""
    with undisturbed(model, training=False), torch.no_grad():
        whole, chain = model(example), example
        for unit in units:
            chain = unit(chain)
    same = isinstance(whole, Tensor) and whole.shape == chain.shape
    if not same or not torch.allclose(whole, chain, rtol=1e-3, atol=1e-3 * float(whole.abs().max()), equal_nan=True):
        raise ValueError(
            f"the layers of the {type(model).__name__}, run one after the other, do not compute what it computes: a "
            "skip connection crosses a gradient-isolated boundary, or its forward does more than run its layers; pass "
            "layers=polyak.local.Layers(...) that are the whole of it"
        )


def _refuse_shared(blocks: Sequence[nn.Module]) -> None:
    owner: dict[nn.Parameter, int] = {}
    for j, block in enumerate(blocks, 1):
        for name, parameter in block.named_parameters():
            if owner.setdefault(parameter, j) != j:
                raise ValueError(
                    f"blocks {owner[parameter]} and {j} share the parameter {name} of shape {tuple(parameter.shape)}; "
                    "layers shared across blocks would get gradients from several losses"
                )
