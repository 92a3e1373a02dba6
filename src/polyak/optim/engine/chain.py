"""What a chain is: rules one after the other, what they ask together, and which make sense as an optimizer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyak.declare import Hyper
from polyak.optim.engine.context import TAPPED, Context, Dialogue, Flow, Memories, Places, Question, conclude, settle
from polyak.optim.engine.rule import Options, Rule, Shared, Slot


class _Look(NamedTuple):
    """What a run on a small tensor shows: the questions, and whether a rule reads facts of the tensor itself."""

    questions: tuple[Question, ...]
    counts: bool


@dataclass(frozen=True)
class Chain:
    """Rules applied one after the other; the last writes the weight."""

    rules: tuple[Rule, ...]
    _looks: list[_Look] = field(default_factory=list, compare=False, repr=False)
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
    def reads_steps(self) -> bool:
        """Whether a rule depends on the optimizer's number of steps."""
        return any(rule.reads_steps for rule in self.rules)

    @property
    def is_compilable(self) -> bool:
        """Whether kernels of this chain can be compiled: layer inputs have sizes of their own."""
        return not self.reads_layers and not any(callable(slot.shape) for slot in self.slots)

    @functools.cached_property
    def reads_layers(self) -> bool:
        """Whether something enters that belongs to one weight; a loss and shared memories are the same for all."""
        return any(name in TAPPED for name in self.named)

    def in_rows(self, questions: tuple[Question, ...]) -> bool:
        """Whether the chain sees tensors as (shape[0], rest)."""
        shapes = {slot.shape for slot in self.slots if not callable(slot.shape)}
        asks = any(q.kind in ("rows", "columns") for q in questions)
        return asks or bool(shapes & {"row", "column"}) or not self.is_compilable

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """What kernels are told by name: what enters the step, then the shared memories."""
        return *self.named, *(memory.name for memory in self.shared)

    @functools.cached_property
    def named(self) -> tuple[str, ...]:
        """What must enter the step by name, each once."""
        return tuple(dict.fromkeys(name for rule in self.rules for name in rule.inputs))

    @functools.cached_property
    def shared(self) -> tuple[Shared, ...]:
        """The memories that are kept once for the whole optimizer, in order."""
        return tuple(memory for rule in self.rules for memory in rule.shared)

    def at(self, place: str, rule: Rule) -> Chain:
        """This chain with ``rule`` put behind the read-out of the memory ``place``.

        Raises:
            ValueError: no rule has such a place, or the rule is more than a read-out.
        """
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
            own = {slot.name: memories[slot.name] for slot in rule.slots}
            own |= {memory.name: dialogue.inputs[memory.name] for memory in rule.shared}
            x, written = rule.update(x, Memories(own), _context(rule, values, dialogue, x))
            new.update(written)
        return x, new

    def questions(self, h: Options) -> tuple[Question, ...]:
        """What the chain asks, found by running it on a 2 x 2 tensor."""
        if not self._looks:
            one = torch.ones(2, 2, dtype=torch.float64, device="cpu")
            shapes: dict[Any, Tensor] = {"scalar": one[0, 0], "row": one[:, :1], "column": one[:1]}
            memories = {s.name: shapes.get(s.shape, one) for s in self.slots}
            as_tensors = [
                {k: torch.as_tensor(v, dtype=torch.float64, device="cpu") for k, v in c.items()}
                for c in self.scalars(h, 1)
            ]
            inputs = {name: one if name in TAPPED else one[0, 0] for name in self.inputs}
            recorder = _Recorder(4 * one[0, 0], torch.float64, inputs=inputs)
            self.run(Flow(one, one, one, one), memories, as_tensors, recorder)
            self._looks.append(_Look(tuple(recorder.asked), recorder.counts))
        return self.known_questions

    @property
    def known_questions(self) -> tuple[Question, ...]:
        """What :meth:`questions` has found before."""
        return self._looks[0].questions

    @property
    def counts(self) -> bool:
        """Whether a rule reads the number of elements or the salt, known once :meth:`questions` was asked."""
        return self._looks[0].counts


class _Recorder(Dialogue):
    """Notes the questions, and answers them somehow."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[Question] = []
        self.counts = False

    @property
    def numel(self) -> Tensor:
        self.counts = True
        return self._numel

    @property
    def salt(self) -> Tensor:
        self.counts = True
        return self._salt

    def ask(self, question: Question, terms: tuple[Tensor, ...], c: Context) -> Any:
        if question.then is None:
            self.asked.append(question)
            return settle(question, terms, self._numel, self.dtype)
        answers, new = conclude(question, terms, c)
        if unknown := sorted(set(new) - set(self.inputs)):
            raise ValueError(f"{question.asker} shares no memory {unknown[0]!r}")
        self.asked.append(replace(question, gives=len(answers)))
        return answers


def _coefficients(rule: Rule, h: Options, t: int) -> dict[str, Any]:
    values = dict(rule.scalars(h, t))
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
        for name in (memory.name for memories in (rule.slots, rule.shared) for memory in memories):
            if name in owner:
                raise ValueError(f"{owner[name]} and {rule.name} both keep a memory named {name!r}")
            owner[name] = rule.name
        for hyper in rule.hypers:
            first = known.setdefault(hyper.name, hyper)
            if first.allowed != hyper.allowed or isinstance(first.default, tuple) != isinstance(hyper.default, tuple):
                raise ValueError(f"{rule.name} reads {hyper.name!r} in another sense than an earlier rule of the chain")
    for memory in (memory for rule in rules for memory in rule.shared):
        if memory.name in known or memory.name == "loss":
            raise ValueError(f"the shared memory {memory.name!r} of {owner[memory.name]} has the name of an option")
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
        _check_place(rule, whole.rules[:i], whole.rules[i + 1 :])


def _check_place(rule: Rule, before: tuple[Rule, ...], after: tuple[Rule, ...]) -> None:
    """Raise ``ValueError`` where a rule makes no sense between those before and after it."""
    if rule.reads_memory and not any(r.slots for r in before):
        raise ValueError(f"{rule.name} reads a memory out, so it must come after a rule that keeps one")
    if rule.reads_before and not any("hands_on" in r.traits for r in before):
        raise ValueError(f"{rule.name} compares with the memory before the step, which only adam() hands on")
    for name in rule.refuses:
        if any(r.name == name for r in before):
            raise ValueError(f"{name} before {rule.name} makes no sense: it would change the sign that is read out")
    directions = [r for r in before if not r.writes]
    for trait, why in rule.pointless_behind:
        if directions and trait in directions[-1].traits:
            raise ValueError(f"{rule.name} behind {directions[-1].name} makes no sense: {why}")
    for trait, why in rule.pointless_before:
        for other in after:
            if trait in other.traits:
                raise ValueError(f"{rule.name} before {other.name} makes no sense: {why}")
