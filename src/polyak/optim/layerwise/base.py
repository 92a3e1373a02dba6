"""Methods that put layer-wise second order in front of a chain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import ParamsT

from polyak.declare import STATIC, Argument
from polyak.optim.engine.execution import Occasion
from polyak.optim.engine.layers import Layer, find_layers
from polyak.optim.engine.member import name_of
from polyak.optim.engine.rule import Options, Slot
from polyak.optim.engine.taps import LayerTaps, Seen
from polyak.optim.groups import REST, Role
from polyak.optim.layerwise.groups import check_shapes, split_layers
from polyak.optim.method import Method

COUNT = "layer_step"
"""Key in a layer's state of the steps that it has made; 0-d, on the CPU."""
DTYPES = (None, torch.float64, torch.float32, torch.bfloat16, torch.float16)
FactorDtype = Annotated[torch.dtype | None, DTYPES, "dtype of the factors; None: the weight's"]
Memory = dict[str, Tensor]


class LayerMethod(Method):
    """A method that preconditions the gradients of Linear and Conv2d layers by what flows through them.

    ::

        [dW | db] <- what the layer's factors make of it;  then a chain of rules, as in any method

    A layer's memories are in ``optimizer.state`` of its weight, and count its steps from 0; those of its group are its
    hyperparameters. At steps that refresh the factors hooks make statistics of the passes since the last
    ``zero_grad()`` or step; at others there are no hooks. Several passes a step are taken as parts of one batch whose
    losses were divided by their number. ``p.grad`` is left as it was. Groups are split in two: ``role="matrix"`` are
    the parameters of layers, ``role="rest"`` all others. Give a DistributedDataParallel module itself, so that
    statistics are averaged over its ranks.
    """

    roles: ClassVar[tuple[Role, ...]] = ("matrix",)
    holds: ClassVar[dict[str, str]] = {}
    """What the memories of a layer are, in words, by name."""

    params: Annotated[  # type: ignore[assignment]
        ParamsT | nn.Module, Argument("a module, or with ``model`` parameters, named parameters or groups")
    ]
    _: KW_ONLY
    model: Annotated[nn.Module | None, Argument("the module of the layers, where ``params`` is none")] = None
    exclude: Annotated[
        Sequence[str], Argument("patterns of names of layers that are left to the rule of other weights")
    ] = ()
    scaler: Annotated[torch.amp.GradScaler | None, Argument("the GradScaler that scales the loss, if one does")] = None
    factor_dtype: Annotated[FactorDtype, STATIC] = None

    _heard: LayerTaps | None = None
    _layers: Sequence[Layer] = ()
    _listening: AbstractSet[Layer] = frozenset()
    _process_group: Any = None

    def _begin(self, values: dict[str, Any]) -> None:
        model, exclude, scaler = (values.pop(name) for name in ("model", "exclude", "scaler"))
        params, owner = values["params"], type(self).__name__
        model = params if model is None and isinstance(params, nn.Module) else model
        if not isinstance(model, nn.Module):
            raise TypeError(f"{owner} reads what flows through layers: give it the model, as params or as model=")
        layers = find_layers(model, exclude, owner)
        if isinstance(params, nn.Module):
            values["params"] = [(n, p) for n, p in params.named_parameters() if p.requires_grad]
        values["params"] = split_layers(values["params"], layers)
        super()._begin(values)
        self._attach(model, layers, scaler)

    def tap(self, module: nn.Module, exclude: Sequence[str] = (), scaler: torch.amp.GradScaler | None = None) -> None:
        """Listen to this module's layers from now on; for an optimizer that was copied or unpickled.

        Raises:
            ValueError: as for the constructor.
        """
        self._attach(module, find_layers(module, exclude, self._owner()), scaler)

    def _attach(self, model: nn.Module, layers: Sequence[Layer], scaler: torch.amp.GradScaler | None) -> None:
        groups = {id(p): group["role"] for group in self.param_groups for p in group["params"]}
        kept = [layer for layer in layers if groups.get(id(layer.weight)) in self.roles]
        if not kept:
            raise ValueError(f"{self._owner()}: none of the weights is of a layer of the model")
        for layer in kept:
            if layer.bias is not None and id(layer.bias) not in groups:
                raise ValueError(f"{self._owner()}: the bias of {layer.name} is trained, and in no group")
        if self._heard is not None:
            self._heard.remove()
        self._layers, self._heard = kept, LayerTaps(self, scaler)
        self._process_group = model.process_group if isinstance(model, DistributedDataParallel) else None
        self._listen()

    @abstractmethod
    def is_due(self, group: Options, count: int) -> bool:
        """Whether a layer's factors are refreshed at its step ``count``, from 0."""

    @classmethod
    @abstractmethod
    def memory_names(cls, group: Options) -> tuple[str, ...]:
        """The names of a layer's memories."""

    @classmethod
    @abstractmethod
    def fresh(cls, layer: Layer, like: Tensor, group: Options) -> Memory:
        """The memories of a layer at its start, by name; ``like`` has their dtype and device."""

    @abstractmethod
    def enter(self, layer: Layer, x: Tensor) -> Tensor:
        """The statistic of what goes in; see :class:`polyak.optim.engine.taps.Collector`."""

    @abstractmethod
    def leave(self, layer: Layer, gradient: Tensor) -> Tensor:
        """The statistic of the gradient by what comes out."""

    @abstractmethod
    def means(self, layer: Layer, seen: Seen) -> tuple[Tensor, Tensor]:
        """The statistics of the whole batch, from the sums over its passes."""

    @abstractmethod
    def refreshed(self, layer: Layer, memory: Memory, entered: Tensor, left: Tensor) -> Memory:
        """The memories with these statistics taken in."""

    @abstractmethod
    def precondition(self, layer: Layer, memory: Memory, gradient: Tensor) -> Tensor:
        """The direction in place of the gradient (outputs, inputs)."""

    @contextmanager
    def around_step(self, occasion: Occasion) -> Iterator[None]:
        """Have the chains see preconditioned gradients; factors are written when the weights are."""
        active = self._active() if self.is_on else []
        if occasion == "request":
            for layer in active:
                self.memory(layer)
            yield
            return
        memories = self._refreshed_memories(active)
        plain = [(p, p.grad) for layer in active for p in layer.params]
        directions = [self._directions(layer, memories[layer]) for layer in active]
        try:
            for layer, parts in zip(active, directions, strict=True):
                for p, direction in zip(layer.params, parts, strict=True):
                    p.grad = direction
            yield
        finally:
            for p, gradient in plain:
                p.grad = gradient
        if occasion == "step":
            self._write(memories)

    @property
    def is_on(self) -> bool:
        """Whether the layers are preconditioned; a method may end it."""
        return True

    def _active(self) -> list[Layer]:
        """The layers that step now."""
        if self._heard is None:
            raise RuntimeError(f"{self._owner()} reads what flows through layers: call tap(model) before the passes")
        self._refuse_unheard()
        active = [layer for layer in self._layers if layer.weight.grad is not None]
        for layer in active:
            if layer.bias is not None and layer.bias.grad is None:
                raise RuntimeError(f"{self._owner()}: the weight of {layer.name} has a gradient, its bias has none")
        return active

    def _refuse_unheard(self) -> None:
        """A group of layers that was added later has none that is not listened to."""
        known = {id(p) for layer in self._layers for p in layer.params}
        for index, group in enumerate(self.param_groups):
            if group["role"] not in self.roles:
                continue
            for i, p in enumerate(group["params"]):
                if id(p) not in known and p.grad is not None:
                    raise RuntimeError(
                        f"{self._owner()}: {name_of(group, index, i)} is of no layer that is listened to: "
                        f"call tap(model) before the passes, or add it with role={REST!r}"
                    )

    def _refreshed_memories(self, active: Sequence[Layer]) -> dict[Layer, Memory]:
        assert self._heard is not None
        # a period that was changed since the hooks were placed holds from the next step on
        due = [layer for layer in active if layer in self._listening and self._is_due(layer)]
        for layer in due:
            if layer not in self._heard.seen:
                raise RuntimeError(
                    f"{self._owner()}: no layer statistics of {layer.name or 'the layer'} since the last step: "
                    "run forward and backward with gradients enabled before step()"
                )
        statistics = self._averaged([self.means(layer, self._heard.seen[layer]) for layer in due])
        sound = self._sound(due, statistics)
        found = {layer: self.memory(layer) for layer in active}
        for layer, (entered, left), good in zip(due, statistics, sound, strict=True):
            if good:
                found[layer] = found[layer] | self.refreshed(layer, found[layer], entered, left)
        return found

    def _averaged(self, statistics: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The mean over the ranks of a DistributedDataParallel model, each of which has a part of the batch."""
        if self._process_group is not None:
            for tensor in (t for pair in statistics for t in pair):
                torch.distributed.all_reduce(tensor, group=self._process_group)
                tensor.div_(self._process_group.size())
        return statistics

    def _sound(self, layers: Sequence[Layer], statistics: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
        """Whether the statistics of each layer are finite; warns of those that are not."""
        if not layers:
            return []
        sound = torch.stack([entered.isfinite().all() & left.isfinite().all() for entered, left in statistics])
        good: list[bool] = sound.tolist()
        for layer, fine in zip(layers, good, strict=True):
            if not fine:
                self.advise(f"what flows through {layer.name or 'the layer'} is not finite; its factors stay")
        return good

    def _directions(self, layer: Layer, memory: Memory) -> list[Tensor]:
        gradients = [p.grad for p in layer.params if p.grad is not None]
        joined = layer.join(gradients).to(self._like(layer).dtype)
        return layer.part(self.precondition(layer, memory, joined))

    @torch.no_grad()
    def _write(self, memories: dict[Layer, Memory]) -> None:
        for layer, memory in memories.items():
            state = self.state[layer.weight]
            state.update({name: memory[name].detach() for name in memory})
            state[COUNT] = state[COUNT] + 1
        if self._heard is not None:
            self._heard.clear()
        self._listen()

    def _listen(self) -> None:
        """Have hooks on the layers whose next step refreshes, and on no others."""
        if self._heard is not None:
            self._listening = {layer for layer in self._layers if self.is_on and self._is_due(layer)}
            for layer in self._layers:
                self._heard.listen(layer, layer in self._listening)

    def group_of(self, layer: Layer) -> dict[str, Any]:
        """The group of the layer's weight, whose options are the layer's."""
        return next(g for g in self.param_groups if any(p is layer.weight for p in g["params"]))

    def memory(self, layer: Layer) -> Memory:
        """The layer's memories by name; made at their first use."""
        state, group = self.state[layer.weight], self.group_of(layer)
        names = self.memory_names(group)
        if not all(name in state for name in names):
            state.update(self.fresh(layer, self._like(layer), group))
            state.setdefault(COUNT, torch.zeros((), device="cpu"))
        return {name: state[name] for name in names}

    def _like(self, layer: Layer) -> Tensor:
        weight = layer.weight.detach()
        return weight.new_empty(0, dtype=self.group_of(layer)["factor_dtype"] or weight.dtype)

    def _is_due(self, layer: Layer) -> bool:
        return self.is_due(self.group_of(layer), int(self.state.get(layer.weight, {}).get(COUNT, 0)))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; what passes brought goes with their gradients."""
        if self._heard is not None:
            self._heard.clear()
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for any method; refuses factors of other shapes.

        Raises:
            ValueError: names the mismatch; nothing has changed.
        """
        by_weight = {id(layer.weight): layer for layer in self._layers}
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            for p, index in zip(group["params"], saved["params"], strict=False):
                if id(p) in by_weight:
                    self._check_loaded(by_weight[id(p)], state_dict["state"].get(index) or {})
        super().load_state_dict(state_dict)
        self._listen()

    def _check_loaded(self, layer: Layer, values: dict[str, Any]) -> None:
        wanted = self.fresh(layer, self._like(layer).to("meta"), self.group_of(layer))
        check_shapes(wanted, values, f"{self._owner()}: {layer.name}")

    @classmethod
    def memories(cls) -> list[tuple[Slot, str]]:
        """What is kept for a layer, and by the chain for a weight."""
        names = cls.memory_names({h.name: h.default for h in cls.hypers})
        return [*super().memories(), *((Slot(name, cls.holds[name]), "a layer") for name in names)]

    @classmethod
    def state_bytes_per_parameter(cls, **hyperparameters: Any) -> float:
        """Bytes of state for a float32 weight of a Linear layer of 1024 by 1024, with its factors.

        Raises:
            TypeError: an unknown hyperparameter.
        """
        base = super().state_bytes_per_parameter(**hyperparameters)
        options = {h.name: h.default for h in cls.hypers} | hyperparameters
        layer = Layer("", nn.Linear(1024, 1024, bias=False, device="meta"))
        like = torch.empty(0, dtype=options["factor_dtype"] or torch.float32, device="meta")
        factors = cls.fresh(layer, like, options).values()
        return round(base + sum(t.nbytes for t in factors if t.ndim) / layer.weight.numel(), 3)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; without a ``role`` it takes the rule of other weights."""
        super().add_param_group({"role": REST, **param_group})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._heard, self._layers, self._listening = None, (), frozenset()
