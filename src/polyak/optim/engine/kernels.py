"""Kernels: one pass of a chain over dense arrays, as a plain function or compiled ahead of time.

A kernel sees one dense, detached array a tensor, flat or (rows, columns), and all coefficients in one float64 vector
and again in float32: then one package on disk serves every model and every hyperparameter (see :mod:`polyak.aot`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from polyak.aot import Array, Source
from polyak.memory.codecs import BLOCK
from polyak.optim.engine.chain import Chain
from polyak.optim.engine.context import Asked, Dialogue, Flow, Rows, outside
from polyak.optim.engine.keeping import Kept, Layout, Rounding, write_weight
from polyak.optim.engine.rule import Rule

Names = tuple[tuple[str, ...], ...]
Dims = tuple[str | int, ...]
NEVER_STORED = (("realize_opcount_threshold", 10**6), ("realize_reads_threshold", 10**6))
"""Inductor would store a value that two loops need, as large as the weight; computing it twice is as fast."""


def high(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a weight of ``dtype`` is computed in."""
    return torch.float32 if dtype.itemsize < 4 else dtype


@dataclass(frozen=True)
class Form:
    """What selects the code of a kernel.

    Args:
        chain: the rules.
        names: of the coefficients of each rule, in the order of the vector that holds their values.
        weight: dtype of the weight.
        gradient: dtype of the gradient.
        kept: how each memory is kept.
        rounding: how a half-precision weight is written.
        maximize: ascend.
        layout: arrays are ``"flat"``, ``"rows"`` (shape[0], rest), ``"blocks"`` of 8-bit storage or ``"square"``.
        inside: sums over the tensor are answered in the kernel, which sees the whole tensor.
        level: up to which question that is answered outside; None: to the end, writing weight and memories.
    """

    chain: Chain
    names: Names
    weight: torch.dtype
    gradient: torch.dtype
    kept: tuple[Kept, ...]
    rounding: Rounding
    maximize: bool
    layout: Layout
    inside: bool
    level: int | None = None

    @property
    def variant(self) -> tuple[Any, ...]:
        """What selects the code besides the chain."""
        types = (self.weight, self.gradient, self.kept, self.rounding)
        return (self.names, *types, self.maximize, self.layout, self.inside, self.level)

    @property
    def has_facts(self) -> bool:
        """Whether the kernel takes the tensor's facts: its number of elements and its salt for rounding."""
        asks = any(q.is_local for q in self.chain.known_questions)
        return asks or self.chain.counts or self.rounding == "stochastic" or any(kept.draws for kept in self.kept)


def evaluate(
    form: Form, tensors: Sequence[Tensor], notes: dict[str, Tensor] | None = None, traced: bool = False
) -> tuple[Flow, dict[str, Tensor]]:
    """Run the chain on the tensors of a kernel; half precision is computed in float32. Writes nothing."""
    p, g, scalars, single, *rest = tensors
    dtype = high(form.weight)
    facts = rest.pop(0) if form.has_facts else None
    numel, salt = (facts[0], facts[1]) if facts is not None else (scalars[0], None)
    parts = [[rest.pop(0) for _ in kept.keys] for kept in form.kept]
    del rest[: form.rounding == "kahan"]
    inputs = {name: rest.pop(0) for name in form.chain.inputs}
    weight, gradient = p.to(dtype), g.to(dtype)
    dialogue = Dialogue(numel, dtype, _unpacked(form, rest), form.inside, inputs, salt)
    dialogue.notes = notes
    gradient = -gradient if form.maximize else gradient
    old = {kept.slot.name: kept.decode(own, dtype, p) for kept, own in zip(form.kept, parts, strict=True)}
    exact = _numbers(scalars, form.names)
    values = iter(exact)
    coefficients = [{name: next(values) for name in rule_names} for rule_names in form.names]
    stores = bool(form.chain.known_questions)
    with _Once(exact, _numbers(single, form.names), dtype, stores) if traced else nullcontext():
        x, new = form.chain.run(Flow(gradient, gradient, weight, weight, 1.0), old, coefficients, dialogue)
    # a rule that chooses between coefficients alone has made them float64
    return x.but(w=x.w.to(dtype)), {name: value.to(dtype) for name, value in new.items()}


def _numbers(vector: Tensor, names: Names) -> list[Tensor]:
    return list(vector.unbind()) if vector.is_meta else [vector[i] for i in range(sum(map(len, names)))]


class _Once(TorchFunctionMode):
    """While a kernel is traced: what is the same for many elements is found once, outside the loop over them.

    Operations on float32 arrays take the coefficients from the float32 vector: a loop would convert those of the
    float64 vector again for every 16 elements, at 5 to 10 % of a step. What a rule makes of coefficients alone stays in
    float64. Where a chain asks for sums, the numbers, rows and columns that it makes of them are stored in between: a
    loop would take their roots and quotients again for every 16 elements, which made a step of AdamP 1.7 times as long.
    """

    def __init__(self, exact: Sequence[Tensor], single: Sequence[Tensor], dtype: torch.dtype, stores: bool) -> None:
        super().__init__()
        given = single if dtype is torch.float32 else exact
        self._instead = {id(t): (t, instead) for t, instead in zip(exact, given, strict=True)}
        self._dtype, self._stores = dtype, stores

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and (name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))):
            self._instead.pop(id(args[0]), None)  # written in place: what was kept of it is no longer so
        elif name not in LIKE_ANOTHER:
            arrays = [a for a in args if isinstance(a, Tensor) and a.ndim and a.is_floating_point()]
            if {a.dtype for a in arrays} == {self._dtype} and not all(map(_is_small, arrays)):
                args = [self._found(a) if isinstance(a, Tensor) and _is_small(a) else a for a in args]
        return func(*args, **(kwargs or {}))

    def _found(self, small: Tensor) -> Tensor:
        if id(small) not in self._instead and self._stores and small.is_floating_point():
            # a number does not decide the dtype of what it is combined with, a row does; views are never fused
            kept = small if small.ndim else small.to(self._dtype)
            self._instead[id(small)] = (small, kept.as_strided(kept.shape, kept.stride()))
        return self._instead.get(id(small), (small, small))[1]


LIKE_ANOTHER = frozenset(("to", "type_as", "expand_as", "view_as", "new_tensor"))
"""Functions that say a number's dtype instead of combining it."""


def _is_small(t: Tensor) -> bool:
    """Whether it is a number, or one number a row or column; asks nothing of sizes that are not known yet."""
    return t.ndim == 0 or any(isinstance(size, int) and size == 1 for size in t.shape)


def function(form: Form, traced: bool = False) -> Callable[..., Any]:
    """The kernel as a plain function of tensors, in the order that :func:`signature` gives; or to be ``traced``."""

    def kernel(*tensors: Tensor) -> Any:
        try:
            x, new = evaluate(form, tensors, traced=traced)
        except Asked as asked:
            return asked.terms
        _write(form, tensors, x.w, new)
        return None

    return kernel


def _write(form: Form, tensors: Sequence[Tensor], w: Tensor, new: dict[str, Tensor]) -> None:
    p, _, scalars, _, *rest = tensors
    facts = rest.pop(0) if form.has_facts else None
    # the step number is the last of the vector; each step, tensor and memory has a seed of its own
    seed = (facts[1] + scalars[-1] * 2**20).to(torch.int64) if facts is not None else None
    for i, kept in enumerate(form.kept, start=1):
        own = [rest.pop(0) for _ in kept.keys]
        if kept.slot.name in new:
            kept.write(own, new[kept.slot.name], None if seed is None else seed + i * 2**56)
    write_weight(p, w, form.rounding, seed, rest[0] if form.rounding == "kahan" else None)


def signature(form: Form) -> Iterator[Array]:
    """Every tensor of a kernel."""
    layouts: dict[Layout, Dims] = {"rows": ("rows", "columns"), "blocks": ("blocks", BLOCK)}
    whole = layouts.get(form.layout, ("n",))
    yield Array(form.weight, whole)
    yield Array(form.gradient, whole)
    yield from [Array(dtype, (sum(map(len, form.names)) + 1,)) for dtype in (torch.float64, torch.float32)]
    if form.has_facts:
        yield Array(torch.float64, (2,))
    for kept in form.kept:
        yield from kept.arrays(form.weight, whole)
    if form.rounding == "kahan":
        yield Array(form.weight, whole)
    for _ in form.chain.inputs:
        yield Array(torch.float64)
    for question in outside(form.chain.known_questions, form.inside)[: form.level]:
        yield from _answer_arrays(question.kind, question.answers, high(form.weight), whole)


def _answer_arrays(kind: str, width: int, dtype: torch.dtype, whole: Dims) -> Iterator[Array]:
    if kind == "rows":
        yield from [Array(dtype, ("rows", 1))] * width + [Array(torch.float64)] * (width + 1)
    elif kind == "columns":
        yield from [Array(dtype, (1, "columns"))] * width
    else:
        yield from [Array(dtype, whole)] if kind == "matrix" else [Array(torch.float64)] * width


def pack(answer: Any) -> list[Tensor]:
    """An answer as the tensors that a kernel takes."""
    return [*answer.row, *answer.whole, answer.worst] if isinstance(answer, Rows) else list(answer)


def _unpacked(form: Form, tensors: list[Tensor]) -> list[Any]:
    """The inverse of :func:`pack`, for all answers brought."""
    answers: list[Any] = []
    left = list(tensors)
    for question in outside(form.chain.known_questions, form.inside):
        if not left:
            break
        width = question.answers
        if question.kind == "rows":
            answers.append(Rows(tuple(left[:width]), tuple(left[width : 2 * width]), left[2 * width]))
            del left[: 2 * width + 1]
        else:
            answers.append(tuple(left[:width]))
            del left[:width]
    return answers


def source(form: Form, small: bool, device: torch.device) -> Source:
    """What :mod:`polyak.aot` compiles; ``small``: for tensors that one thread is best for."""
    title = "+".join(rule.title for rule in form.chain) + f" {str(form.weight).removeprefix('torch.')}"
    return Source(
        name=f"{title}{'' if form.level is None else f' {form.level}'}{', small' if small else ''}",
        function=function(form, traced=True),
        inputs=tuple(signature(form)),
        device=device,
        identity=_identity(form),
        threads="one" if small else "all",
        settings=NEVER_STORED,
    )


def _identity(form: Form) -> str | None:
    """What the code is, in words; None if a rule is not ours and only its graph can tell."""
    rules = [_described(rule) for rule in form.chain]
    if None in rules:
        return None
    return repr((rules, *form.variant))


def _described(rule: Rule) -> str | None:
    if rule.origin is None:
        return None
    make, given = rule.origin
    args = [_described(arg) if isinstance(arg, Rule) else arg for arg in given]
    if any(text is None for text, arg in zip(args, given, strict=True) if isinstance(arg, Rule)):
        return None
    behind = [(place, _described(other)) for place, other in rule.inserted]
    if not make.__module__.startswith("polyak.") or any(text is None for _, text in behind):
        return None
    return repr((make.__module__, make.__qualname__, tuple(args), behind))
