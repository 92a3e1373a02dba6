"""What a rule is, and how rules make a chain.

A rule is one tensor's worth of mathematics: a pure function from what flows down the chain, its own memories and
a context to the new flow and the new memories. It writes nothing; the engine does, once, at the end of the step.
Because it is pure it may run again: where a rule asks for a sum over all tensors or ranks or for a matrix function,
the engine runs the chain up to that question, answers it outside the kernel, and starts over with the answer known.
So one textbook function serves eager, batched, compiled and sharded execution.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from polyak.declare import Hyper
from polyak.optim.engine.context import Context, Dialogue, Flow, Memories, Places, Question, settle

Options = Mapping[str, Any]


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
        initial: the value it starts at.
    """

    name: str
    holds: str = ""
    average: Literal["signed", "positive"] | None = None
    shape: Literal["param", "scalar", "row", "column"] | Callable[[torch.Size], tuple[int, ...]] = "param"
    dtype: Literal["high", "param"] = "high"
    initial: float = 0.0

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


Update = Callable[[Flow, Any, Any], tuple[Flow, dict[str, Tensor]]]


def _no_scalars(h: Options, t: int) -> dict[str, Any]:
    return {}


def _always(shape: torch.Size) -> bool:
    return True


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
        writes: ``"step"`` if the rule moves the weight (``w``) along the direction, ``"decay"`` if it shrinks it.
        reads_memory: the rule makes sense only behind a rule that keeps a memory.
        refuses: names of rules that must not come before this one.
        applies: for which shapes of tensor the rule is in the chain.
        inputs: what must enter the step by name: ``"loss"``, or ``"inputs"`` and ``"output_gradients"`` of the layer
            that a weight belongs to; attributes of the context.
        places: names of memories whose read-out other rules may be put behind with :meth:`Chain.at`.
    """

    name: str
    update: Update
    scalars: Callable[[Options, int], dict[str, Any]] = _no_scalars
    slots: tuple[Slot, ...] = ()
    hypers: tuple[Hyper, ...] = ()
    timed: bool = False
    writes: Literal["", "step", "decay"] = ""
    reads_memory: bool = False
    refuses: tuple[str, ...] = ()
    applies: Callable[[torch.Size], bool] = _always
    inputs: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    inserted: tuple[tuple[str, Rule], ...] = ()
    origin: tuple[Callable[..., Rule], tuple[Any, ...]] | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.origin is None:
            raise TypeError(f"rule {self.name!r} cannot be pickled or copied; make it with a @factory function")
        return _rebuild, (*self.origin, self.inserted)

    def for_shape(self, shape: torch.Size) -> Rule:
        """This rule with only those rules behind its places that apply to a tensor of this shape."""
        kept = tuple(i for i, (_, rule) in enumerate(self.inserted) if rule.applies(shape))
        return self if len(kept) == len(self.inserted) else _with_inserted(self, kept)

    def at(self, place: str, rule: Rule) -> Rule:
        """This rule with ``rule`` put behind the read-out of the memory ``place``."""
        if place not in self.places:
            raise ValueError(f"{self.name} has no place {place!r}; its places are {list(self.places)}")
        if rule.slots or rule.writes or rule.timed:
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
    return replace(rule, inserted=(*rule.inserted, (place, other)), hypers=hypers)


@functools.cache
def _with_inserted(rule: Rule, kept: tuple[int, ...]) -> Rule:
    return replace(rule, inserted=tuple(rule.inserted[i] for i in kept))


_F = TypeVar("_F", bound=Callable[..., Rule])


def factory(function: _F) -> _F:
    """Make equal arguments give the same :class:`Rule`, so that optimizers share its compiled kernel."""
    signature = inspect.signature(function)
    cached = functools.lru_cache(maxsize=None)(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Rule:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        rule = cached(*bound.args, **bound.kwargs)
        if rule.origin is None:
            object.__setattr__(rule, "origin", (make, bound.args))
        return rule

    return make  # type: ignore[return-value]


@dataclass(frozen=True)
class Chain:
    """Rules applied one after the other; the last writes the weight."""

    rules: tuple[Rule, ...]
    _questions: list[tuple[Question, ...]] = field(default_factory=list, compare=False, repr=False)
    _parts: dict[tuple[Rule, ...], Chain] = field(default_factory=dict, compare=False, repr=False)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __hash__(self) -> int:
        return hash(self.rules)

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All memories, in order."""
        return tuple(slot for rule in self.rules for slot in rule.slots)

    @property
    def hypers(self) -> tuple[Hyper, ...]:
        """All hyperparameters, each once."""
        # the step last: its default lr is the one that counts
        by_step_last = sorted(self.rules, key=lambda rule: rule.writes == "step")
        return tuple({h.name: h for rule in by_step_last for h in rule.hypers}.values())

    @property
    def timed(self) -> bool:
        """Whether a rule depends on the step number."""
        return any(rule.timed for rule in self.rules)

    @property
    def is_compilable(self) -> bool:
        """Whether kernels of this chain can be compiled: layer inputs have sizes of their own."""
        return set(self.inputs) <= {"loss"} and not any(callable(slot.shape) for slot in self.slots)

    def in_rows(self, questions: tuple[Question, ...]) -> bool:
        """Whether the chain sees tensors as (shape[0], rest)."""
        shapes = {slot.shape for slot in self.slots if not callable(slot.shape)}
        asks = any(q.kind in ("rows", "columns") for q in questions)
        return asks or bool(shapes & {"row", "column"}) or not self.is_compilable

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """What must enter the step by name, each once."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.inputs))

    def at(self, place: str, rule: Rule) -> Chain:
        """This chain with ``rule`` put behind the read-out of the memory ``place``."""
        owners = [i for i, r in enumerate(self.rules) if place in r.places]
        if not owners:
            places = [name for r in self.rules for name in r.places]
            raise ValueError(f"the chain has no place {place!r}; its places are {places}")
        rules = list(self.rules)
        rules[owners[0]] = rules[owners[0]].at(place, rule)
        return Chain(tuple(rules))

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.rules,)

    def for_shape(self, shape: torch.Size) -> Chain:
        """The rules that apply to a tensor of this shape; the same chain for the same rules."""
        kept = tuple(rule.for_shape(shape) for rule in self.rules if rule.applies(shape))
        return self if kept == self.rules else self._parts.setdefault(kept, Chain(kept))

    def scalars(self, h: Options, t: int) -> list[dict[str, Any]]:
        """The coefficients of every rule, in order."""
        return [_coefficients(rule, h, t) for rule in self.rules]

    def run(
        self, x: Flow, memories: dict[str, Tensor], coefficients: list[dict[str, Any]], dialogue: Dialogue
    ) -> tuple[Flow, dict[str, Tensor]]:
        """One pass to the end, or up to a question that the dialogue cannot answer, which raises ``Asked``."""
        new: dict[str, Tensor] = {}
        for rule, values in zip(self.rules, coefficients, strict=True):
            own = Memories({slot.name: memories[slot.name] for slot in rule.slots})
            x, written = rule.update(x, own, _context(rule, values, dialogue, x))
            new.update(written)
        return x, new

    def questions(self, h: Options) -> tuple[Question, ...]:
        """What the chain asks, found by running it on a 2 x 2 tensor."""
        if not self._questions:
            one = torch.ones(2, 2, dtype=torch.float64, device="cpu")
            shapes: dict[Any, Tensor] = {"scalar": one[0, 0], "row": one[:, :1], "column": one[:1]}
            memories = {s.name: shapes.get(s.shape, one) for s in self.slots}
            as_tensors = [
                {k: torch.as_tensor(v, dtype=torch.float64).cpu() for k, v in c.items()} for c in self.scalars(h, 1)
            ]
            inputs = {name: one[0, 0] if name == "loss" else one for name in self.inputs}
            recorder = _Recorder(4 * one[0, 0], torch.float64, inputs=inputs)
            self.run(Flow(one, one, one, one), memories, as_tensors, recorder)
            self._questions.append(tuple(recorder.asked))
        return self._questions[0]


class _Recorder(Dialogue):
    """Notes the questions, and answers them somehow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[Question] = []

    def ask(self, question: Question, terms: tuple[Tensor, ...]) -> Any:
        self.asked.append(question)
        return settle(question, terms, self.numel, self.dtype)


def _coefficients(rule: Rule, h: Options, t: int) -> dict[str, Any]:
    values = rule.scalars(h, t)
    for i, (_, inserted) in enumerate(rule.inserted):
        values |= {f"{i}:{name}": value for name, value in inserted.scalars(h, t).items()}
    return values


def _context(rule: Rule, values: dict[str, Any], dialogue: Dialogue, x: Flow) -> Context:
    if not rule.places:
        return Context(rule.name, values, dialogue)
    behind = []
    for i, (where, inserted) in enumerate(rule.inserted):
        prefix = f"{i}:"
        own = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
        behind.append((where, inserted, Context(inserted.name, own, dialogue)))
    own = {name: value for name, value in values.items() if ":" not in name}
    return Places(rule.name, {**own, "behind": behind, "flow": x}, dialogue)


def chain(*links: Rule | Chain) -> Chain:
    """Put rules, or whole chains, one after the other.

    Raises:
        TypeError: if a link is neither a rule nor a chain.
        ValueError: if two rules own a memory of the same name or declare a hyperparameter differently. What only a
            whole chain can lack (a step, a memory to read out) is refused by the optimizer.
    """
    rules: list[Rule] = []
    for link in links:
        if not isinstance(link, (Rule, Chain)):
            raise TypeError(f"chain() takes rules and chains, got {link!r}; a rule factory must be called")
        rules += [link] if isinstance(link, Rule) else link.rules
    owner: dict[str, str] = {}
    known: dict[str, Hyper] = {}
    for rule in rules:
        for slot in rule.slots:
            if slot.name in owner:
                raise ValueError(f"{owner[slot.name]} and {rule.name} both keep a memory named {slot.name!r}")
            owner[slot.name] = rule.name
        for hyper in rule.hypers:
            first = known.setdefault(hyper.name, hyper)
            if first.allowed != hyper.allowed or isinstance(first.default, tuple) != isinstance(hyper.default, tuple):
                raise ValueError(f"{rule.name} reads {hyper.name!r} in another sense than an earlier rule of the chain")
    return Chain(tuple(rules))


def check_complete(whole: Chain) -> None:
    """Raise ``ValueError`` unless the chain makes sense as an optimizer."""
    steps = [i for i, rule in enumerate(whole.rules) if rule.writes == "step"]
    if not steps:
        raise ValueError("a chain must end with a rule that moves the weight, such as descend()")
    for rule in whole.rules[steps[-1] + 1 :]:
        if not rule.writes:
            raise ValueError(f"{rule.name} comes after the step, so nothing would use its direction")
    for i, rule in enumerate(whole.rules):
        before = whole.rules[:i]
        if rule.reads_memory and not any(r.slots for r in before):
            raise ValueError(f"{rule.name} reads a memory out, so it must come after a rule that keeps one")
        for name in rule.refuses:
            if any(r.name == name for r in before):
                raise ValueError(f"{name} before {rule.name} makes no sense: it would change the sign that is read out")
