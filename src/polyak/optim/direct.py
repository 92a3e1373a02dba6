"""Direct calls: past the guards and wrappers of torch.compile, straight to the compiled graph.

A call through torch.compile costs 30 to 130 microseconds, more than many a kernel. What its guards protect is fixed
here by contract (see :mod:`kernels`): only sizes vary, and the graph takes them as integers. So the first call, which
goes through torch.compile, is watched; where every input of the graph can be named, later calls go there directly, and
where it cannot, everything stays as torch.compile has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from polyak.optim.context import Rows

Getter = Callable[[Sequence[Any]], Any]
_ARGUMENTS = ("p", "g", "memories", "scalars", "answers", "numel")
_SOURCE = re.compile(r"L\['(\w+)'\]((?:\[\d+\]|\.\w+(?!\())*)(?:\.size\(\)\[(\d+)\])?")
_LIMIT = re.compile(r"(\w+) <= (\d+)")
_STEP = re.compile(r"\[(\d+)\]|\.(\w+)")


def _getter(source: str) -> Getter | None:
    """What fetches a graph's input from the kernel's arguments, by the name that dynamo gave it."""
    match = _SOURCE.fullmatch(source)
    if match is None or match[1] not in _ARGUMENTS:
        return None
    first = _ARGUMENTS.index(match[1])
    path = [int(i) if i else Rows._fields.index(name) for i, name in _STEP.findall(match[2])]
    dim = int(match[3]) if match[3] else None

    def get(arguments: Sequence[Any]) -> Any:
        value = arguments[first]
        for i in path:
            value = value[i]
        return value if dim is None else value.shape[dim]

    return get


def _source(node: torch.fx.Node) -> str:
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _is_dynamic(value: Any) -> bool:
    """Whether no size of an array was taken for a constant (columns have one that is 1 by contract)."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return True
    first, *rest = cast(Sequence[Any], value.shape)
    sizes = [first, *(size for size in rest if type(size) is not int or size != 1)]
    return all(isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None for size in sizes)


def _longest_row(examples: Sequence[Any], coefficients: Any) -> float | None:
    """The length of rows up to which the graph serves arrays of all sizes; None if it was made for special ones.

    That some sizes are equal the layout guarantees, and long rows are summed in another way. ``coefficients`` is the
    example of the coefficient vector, whose length is fixed by the chain.
    """
    longest = math.inf
    columns = {str(e.shape[1]) for e in examples if isinstance(e, Tensor) and e.dim() == 2}
    sizes = [e for e in examples if isinstance(e, torch.SymInt)]
    fixed = set().union(*(s.node.expr.free_symbols for s in getattr(coefficients, "shape", ()) if hasattr(s, "node")))
    for guard in sizes[0].node.shape_env.guards if sizes else ():
        symbols = guard.expr.free_symbols - fixed
        is_constant = all(str(symbol).startswith("zf") for symbol in symbols)  # a float that the rule closes over
        if is_constant or (guard.expr.is_Equality and all(side.is_Symbol for side in guard.expr.args)):
            continue
        bound = _LIMIT.fullmatch(str(guard.expr))
        if bound is None or bound[1] not in columns:
            return None
        longest = min(longest, float(bound[2]))
    return longest


class Direct:
    """A compiled graph, called with a kernel's arguments."""

    def __init__(self, run: Callable[[list[Any]], Any], getters: list[Getter], longest_row: float) -> None:
        self.run, self.getters, self.longest_row = run, getters, longest_row

    def serves(self, p: Tensor) -> bool:
        """Whether the graph is right for an array: on accelerators its indices may have 32 bits."""
        return p.shape[-1] <= self.longest_row and (p.is_cpu or p.numel() < 2**31)

    def __call__(self, *args: Any) -> Any:
        outputs = self.run([getter(args) for getter in self.getters])
        if outputs:
            return tuple(outputs)
        increment_version((args[0], *args[2]))  # what torch.compile's wrapper does for what a graph writes
        return None

    def prepared(self, args: Sequence[Any]) -> Prepared:
        """The call with all but gradient and coefficients filled in."""
        return Prepared(self.run, [getter(args) for getter in self.getters], args)


class Prepared:
    """A call of which only the gradient and the coefficients change from step to step."""

    def __init__(self, run: Callable[[list[Any]], Any], inputs: list[Any], args: Sequence[Any]) -> None:
        p, g, memories, scalars, *_ = args
        self.run, self.inputs, self.dtype = run, inputs, g.dtype
        self.written = (p, *memories)
        self.at_g = [i for i, value in enumerate(inputs) if value is g]
        self.at_scalars = [i for i, value in enumerate(inputs) if value is scalars]
        for i in self.at_g + self.at_scalars:
            inputs[i] = None  # nothing of this step is kept alive

    def bound(self, g: Tensor, scalars: Tensor) -> list[Any]:
        """The inputs of one call of ``run``."""
        inputs = self.inputs.copy()
        for i in self.at_g:
            inputs[i] = g
        for i in self.at_scalars:
            inputs[i] = scalars
        return inputs

    def __call__(self, g: Tensor, scalars: Tensor) -> None:
        self.run(self.bound(g, scalars))
        increment_version(self.written)


def call_all(calls: Sequence[tuple[Prepared, list[Any]]]) -> None:
    """Run bound calls, with nothing in between: a kernel sweeps the caches, and Python is slow to start again."""
    for call, inputs in calls:
        call.run(inputs)
    increment_version([t for call, _ in calls for t in call.written])


class Watch:
    """Compiles with inductor and watches the first call."""

    def __init__(self) -> None:
        self.getters: list[Getter | None] = []
        self.examples: list[Any] = []
        self.coefficients: Any = None
        self.calls: list[tuple[Any, list[Any], Any]] = []

    def backend(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """The backend that torch.compile is given."""
        from torch._dynamo.backends.registry import lookup_backend

        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.getters = [_getter(_source(node)) for node in nodes]
        self.examples = [node.meta.get("example_value") for node in nodes]
        named = zip(nodes, self.examples, strict=True)
        self.coefficients = next((e for node, e in named if _source(node) == "L['scalars']"), None)
        compile_graph: Callable[..., Callable[..., Any]] = lookup_backend("inductor")
        return compile_graph(module, inputs, config_patches={"size_asserts": False, "alignment_asserts": False})

    def first(self, compiled: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Direct | None]:
        """The result of the first call, and a direct call if the graph's inputs and outputs are understood."""
        from torch._inductor.output_code import CompiledFxGraph

        plain = CompiledFxGraph.__call__

        def spy(graph: Any, inputs: Any) -> Any:
            given = list(inputs)
            result = plain(graph, inputs)
            self.calls.append((graph, given, result))
            return result

        with mock.patch.object(CompiledFxGraph, "__call__", spy):
            result = compiled(*arguments)
        return result, self._direct(arguments, result)

    def _direct(self, arguments: Sequence[Any], result: Any) -> Direct | None:
        if len(self.calls) != 1 or None in self.getters or not all(map(_is_dynamic, self.examples)):
            return None
        longest_row = _longest_row(self.examples, self.coefficients)
        if longest_row is None:
            return None
        graph, given, outputs = self.calls[0]
        getters = [getter for getter in self.getters if getter is not None]
        expected = [getter(arguments) for getter in getters]
        if not _same(expected, given) or not _same(result or (), outputs or ()):
            return None
        return Direct(graph.current_callable, getters, longest_row)


def _same(expected: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether two lists hold the same tensors and equal integers."""
    return len(expected) == len(given) and all(
        a is b if isinstance(a, Tensor) else a == b for a, b in zip(expected, given, strict=True)
    )
