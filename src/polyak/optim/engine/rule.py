"""What a rule is.

A rule is one tensor's worth of mathematics: a pure function from what flows down the chain, its own memories and
a context to the new flow and the new memories. It writes nothing; the engine does, once, at the end of the step.
Because it is pure it may run again: where a rule asks for a sum over all tensors or ranks or for a matrix function,
the engine runs the chain up to that question, answers it outside the kernel, and starts over with the answer known.
So one textbook function serves eager, batched, compiled and sharded execution.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from polyak.declare import Hyper
from polyak.optim.engine.context import Flow

Options = Mapping[str, Any]
Trait = Literal["signs", "sign_memory", "scale_free", "hands_on"]
"""What a rule's direction is: of entries -1, 0 and 1; one whose memory shows in its signs alone; one that does not
depend on the size of what comes in. ``"hands_on"``: it hands on the memory before the step, ``x.before``."""


def _always(shape: torch.Size) -> bool:
    return True


@dataclass(frozen=True)
class Slot:
    """One memory of a rule: its name in ``optimizer.state[p]``, shape and dtype; it starts at ``initial``.

    Args:
        name: its key in ``optimizer.state[p]``.
        holds: what it is, in words.
        average: ``"signed"`` or ``"positive"`` (never negative) if it is an average, which may be kept in fewer
            bytes (``state_storage``); None if it must be exact: counters, signs, previous values.
        shape: ``"param"``; ``"scalar"``, one number a tensor; ``"row"`` or ``"column"``, one number for each row or
            column of the tensor seen as (shape[0], rest); or a function of the weight's shape, for rules that run
            outside the kernel (layer hooks).
        dtype: ``"high"`` is float32 for half-precision weights and the weight's own otherwise; ``"param"`` is the
            weight's own.
        initial: the value it starts at; where the shape is a function, also a function from the memory's shape to a
            tensor of starting values, the same whenever it is called.
        narrow: for which shapes of weight an average may be kept in fewer bytes.
    """

    name: str
    holds: str = ""
    average: Literal["signed", "positive"] | None = None
    shape: Literal["param", "scalar", "row", "column"] | Callable[[torch.Size], tuple[int, ...]] = "param"
    dtype: Literal["high", "param"] = "high"
    initial: float | Callable[[tuple[int, ...]], Tensor] = 0.0
    narrow: Callable[[torch.Size], bool] = field(default=_always, repr=False)

    def dtype_for(self, param_dtype: torch.dtype) -> torch.dtype:
        """The dtype of this memory for a weight of ``param_dtype``."""
        if self.dtype == "high" and param_dtype.itemsize < 4:
            return torch.float32
        return param_dtype

    def shape_for(self, shape: torch.Size) -> tuple[int, ...]:
        """The shape of this memory for a weight of ``shape``."""
        if callable(self.shape):
            return self.shape(shape)
        rows = shape[0] if shape else 1
        sizes = {"param": tuple(shape), "scalar": (), "row": (rows,), "column": (shape.numel() // max(rows, 1),)}
        return sizes[self.shape]


@dataclass(frozen=True)
class Shared:
    """A memory that a rule keeps once for the whole optimizer: a number, such as an average of the loss.

    It lies as a 0-d float64 tensor in every parameter group whose chain has the rule. ``update`` reads it as it reads
    its other memories; the function given to ``c.total(..., then=...)`` says its new value.

    Args:
        name: its key in ``optimizer.param_groups[i]``.
        holds: what it is, in words.
        initial: the value it starts at.
    """

    name: str
    holds: str = ""
    initial: float = 0.0


Update = Callable[[Flow, Any, Any], tuple[Flow, dict[str, Tensor]]]


def _no_scalars(h: Options, t: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, eq=False)
class Rule:
    """One link of a chain.

    Args:
        name: what errors and ``explain()`` call it.
        update: ``(x: Flow, s: memories, c: Context) -> (Flow, new memories by name)``; pure.
        scalars: ``(h: hyperparameters of the group, t: step from 1) -> coefficients``; runs once per group and step in
            Python floats, outside the kernel. Coefficients derived inside ``update`` would be computed per element.
        slots: the memories.
        hypers: the hyperparameters that ``scalars`` reads.
        timed: the rule depends on ``t``; a per-tensor ``step`` is then kept.
        reads_steps: ``scalars`` reads ``h["steps"]``, the steps that the optimizer has made, which are the same for
            all tensors whichever had a gradient; the engine then counts them in the parameter groups.
        writes: ``"step"`` if the rule moves the weight (``w``) along the direction, ``"decay"`` if it shrinks it.
        reads_memory: the rule makes sense only behind a rule that keeps a memory.
        refuses: names of rules that must not come before this one.
        traits: what its direction is.
        pointless_behind: traits of the direction right before it with which it makes no sense, and why.
        pointless_before: traits of directions after it with which it makes no sense, and why.
        reads_before: it reads ``x.before``.
        applies: for which shapes of tensor the rule is in the chain.
        inputs: what must enter the step by name: ``"loss"``; ``"inputs"`` and ``"output_gradients"`` of the layer that
            a weight belongs to; or what the optimizer's ``measure()`` finds; attributes of the context.
        places: names of memories whose read-out other rules may be put behind with :meth:`Chain.at`.
        shared: the memories that it keeps once for the whole optimizer.
    """

    name: str
    update: Update
    scalars: Callable[[Options, int], dict[str, Any]] = _no_scalars
    slots: tuple[Slot, ...] = ()
    hypers: tuple[Hyper, ...] = ()
    timed: bool = False
    reads_steps: bool = False
    writes: Literal["", "step", "decay"] = ""
    reads_memory: bool = False
    refuses: tuple[str, ...] = ()
    traits: tuple[Trait, ...] = ()
    pointless_behind: tuple[tuple[Trait, str], ...] = ()
    pointless_before: tuple[tuple[Trait, str], ...] = ()
    reads_before: bool = False
    applies: Callable[[torch.Size], bool] = _always
    inputs: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    shared: tuple[Shared, ...] = ()
    inserted: tuple[tuple[str, Rule], ...] = ()
    origin: tuple[Callable[..., Rule], tuple[Any, ...]] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """The name, and what stands behind places: ``adam[exp_avg: cautious]``."""
        behind = ", ".join(f"{place}: {rule.title}" for place, rule in self.inserted)
        return f"{self.name}[{behind}]" if behind else self.name

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is None:
            raise TypeError(f"rule {self.name!r} cannot be pickled or copied; make it with a @factory function")
        return _rebuild, (*self.origin, self.inserted)

    def for_shape(self, shape: torch.Size) -> Rule:
        """This rule with only those rules behind its places that apply to a tensor of this shape."""
        kept = tuple(i for i, (_, rule) in enumerate(self.inserted) if rule.applies(shape))
        return self if len(kept) == len(self.inserted) else _with_inserted(self, kept)

    def at(self, place: str, rule: Rule) -> Rule:
        """This rule with ``rule`` put behind the read-out of the memory ``place``.

        Raises:
            ValueError: no such place, or a rule that is more than a read-out.
        """
        if place not in self.places:
            raise ValueError(f"{self.name} has no place {place!r}; its places are {list(self.places)}")
        if rule.slots or rule.shared or rule.writes or rule.timed:
            raise ValueError(f"only a read-out without memory fits behind {place!r}, and {rule.name} is more")
        return _put_behind(self, place, rule)


def _rebuild(make: Callable[..., Rule], args: tuple[Any, ...], inserted: tuple[tuple[str, Rule], ...]) -> Rule:
    rule = make(*args)
    for place, other in inserted:
        rule = rule.at(place, other)
    return rule


@functools.cache
def _put_behind(rule: Rule, place: str, other: Rule) -> Rule:
    """Cached, so that equal combinations are one rule and share its compiled kernel."""
    known = {h.name for h in rule.hypers}
    hypers = rule.hypers + tuple(h for h in other.hypers if h.name not in known)
    inputs = tuple(dict.fromkeys(rule.inputs + other.inputs))
    return replace(rule, inserted=(*rule.inserted, (place, other)), hypers=hypers, inputs=inputs)


@functools.cache
def _with_inserted(rule: Rule, kept: tuple[int, ...]) -> Rule:
    return replace(rule, inserted=tuple(rule.inserted[i] for i in kept))


_F = TypeVar("_F", bound=Callable[..., Rule])


def factory(function: _F) -> _F:
    """Make equal arguments give the same :class:`Rule`, so that optimizers share its compiled kernel.

    Args:
        function: makes a rule of hashable arguments, none of which is by keyword alone. Where an argument is annotated
            as a ``Literal``, only its values are accepted.

    Raises:
        TypeError: the function has keyword-only or ``**`` parameters; later, an argument that is not hashable.
        ValueError: later, an argument that is none of its ``Literal`` values.
    """
    signature = inspect.signature(function)
    other = [p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    if other:
        raise TypeError(f"a rule factory takes its arguments by position or name, and {other[0]!r} is by keyword alone")

    @functools.cache
    def cached(*args: Any) -> Rule:
        _check_choices(function, dict(zip(signature.parameters, args, strict=False)))
        return function(*args)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Rule:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            hash(bound.args)
        except TypeError as error:
            raise TypeError(f"{function.__name__}: arguments must be hashable, such as tuples ({error})") from None
        rule = cached(*bound.args)
        if rule.origin is None:
            object.__setattr__(rule, "origin", (make, bound.args))
        return rule

    return make  # type: ignore[return-value]


def _check_choices(function: Callable[..., Rule], given: Mapping[str, Any]) -> None:
    try:
        hints = get_type_hints(function)
    except NameError:  # names of the caller's own function
        return
    for name, value in given.items():
        kinds = [hints.get(name), *get_args(hints.get(name))]
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices and value not in choices and not (value is None and type(None) in kinds):
            raise ValueError(f"{function.__name__}: {name} must be one of {choices}, got {value!r}")
