"""Functions of arrays that are compiled by their first call and then called directly.

A call through torch.compile goes through guards and wrappers that cost 30 to 130 microseconds, more than many a kernel,
and in which the threads of the last kernel fall asleep. What they protect is fixed here by contract: arrays are dense
and detached, only their sizes vary, and a graph takes those as integers. So the first call, which goes through
torch.compile, is watched; where every input of the graph can be named, later calls go there directly, and where it
cannot, everything stays as torch.compile has it.
"""

from __future__ import annotations

import math
import re
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

Arguments = Sequence[Any]
Getter = Callable[[Arguments], Any]
_SOURCE = re.compile(r"L\['(\w+)'\]((?:\[\d+\]|\.\w+(?!\())*)(?:\.size\(\)\[(\d+)\])?")
_LIMIT = re.compile(r"(\w+) <= (\d+)")
_STEP = re.compile(r"\[(\d+)\]|\.(\w+)")
_failed = False


def failed() -> bool:
    """Whether a compilation failed in this process, so that none is tried any more."""
    return _failed


class Compiled:
    """A function that is compiled by its first call.

    Args:
        plain: ``f(*arguments)`` of dense, detached, distinct arrays, alone or in tuples and lists, and of integers, the
            same in number, dtype and device at every call. It returns tensors, or writes and returns None.
        title: of the code; dynamo counts recompilations per code object, so every function gets one of its own.
        written: the tensors among given arguments that are written, the first of which has the largest shape.
        coefficients: name of the argument, if any, that is one vector whose length never varies.
    """

    def __init__(
        self,
        plain: Callable[..., Any],
        title: str,
        written: Callable[[Arguments], Sequence[Tensor]],
        coefficients: str | None = None,
    ) -> None:
        code = plain.__code__.replace(co_name=title)
        self.plain = types.FunctionType(code, plain.__globals__, title, None, plain.__closure__)
        self.written = written
        self.coefficients = coefficients
        self.direct: Direct | None = None
        self._through: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if _failed:
            return self.plain(*args)
        if self.serves(args):
            return cast(Direct, self.direct)(args)
        return self._first(args) if self._through is None else self._through(*args)

    def serves(self, args: Arguments) -> bool:
        """Whether a call goes straight to the graph."""
        return self.direct is not None and self.direct.serves(self.written(args)[0])

    def _first(self, args: tuple[Any, ...]) -> Any:
        """Compile; if that fails, which it does before anything runs, say so once and run plain from then on."""
        global _failed
        names = self.plain.__code__.co_varnames[: self.plain.__code__.co_argcount]
        watch = _Watch(names, self.coefficients)
        try:
            through = torch.compile(
                self.plain, backend=watch.backend, dynamic=True, fullgraph=True, options={"guard_filter_fn": _guards}
            )
            from torch.fx.experimental import _config as shapes  # here: compiling is not for import time

            # a first array that happens to be square must not make a graph for squares
            with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                result = watch.first(through, args)
        except Exception as error:
            if watch.calls:  # it was compiled, and fails as it runs
                raise
            _failed = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {reason}); polyak runs execution='batched' instead",
                RuntimeWarning,
                stacklevel=2,
            )
            return self.plain(*args)
        self._through = through
        try:
            self.direct = watch.direct(args, result, self.written)
        except Exception:  # it reads what torch keeps to itself; without it calls are slower, and as right
            self.direct = None
        return result


def _guards(entries: Sequence[Any]) -> list[bool]:
    """By contract only tensors and their sizes need guarding."""
    return [entry.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for entry in entries]


class Direct:
    """A compiled graph, called with the arguments of the function that it was made of."""

    def __init__(
        self,
        run: Callable[[list[Any]], Any],
        getters: list[Getter],
        longest_row: float,
        written: Callable[[Arguments], Sequence[Tensor]],
    ) -> None:
        self.run, self.getters, self.longest_row, self.written = run, getters, longest_row, written

    def serves(self, array: Tensor) -> bool:
        """Whether the graph is right for an array: on accelerators its indices may have 32 bits."""
        return array.shape[-1] <= self.longest_row and (array.is_cpu or array.numel() < 2**31)

    def inputs(self, args: Arguments) -> list[Any]:
        """What the graph takes, of the function's arguments."""
        return [getter(args) for getter in self.getters]

    def __call__(self, args: Arguments) -> Any:
        outputs = self.run(self.inputs(args))
        if outputs:
            return tuple(outputs)
        increment_version(self.written(args))  # what torch.compile's wrapper does for what a graph writes
        return None


class _Watch:
    """Compiles with inductor and watches the first call."""

    def __init__(self, names: Sequence[str], coefficients: str | None) -> None:
        self.names, self.title = names, coefficients
        self.getters: list[Getter | None] = []
        self.examples: list[Any] = []
        self.coefficients: Any = None
        self.calls: list[tuple[Any, list[Any]]] = []
        self.outputs: Any = None

    def backend(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """The backend that torch.compile is given."""
        from torch._dynamo.backends.registry import lookup_backend

        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.getters = [_getter(_source(node), self.names) for node in nodes]
        self.examples = [node.meta.get("example_value") for node in nodes]
        named = zip(nodes, self.examples, strict=True)
        self.coefficients = next((e for node, e in named if _source(node) == f"L['{self.title}']"), None)
        compile_graph: Callable[..., Callable[..., Any]] = lookup_backend("inductor")
        return compile_graph(module, inputs, config_patches={"size_asserts": False, "alignment_asserts": False})

    def first(self, through: Callable[..., Any], args: Arguments) -> Any:
        """The result of the first call."""
        from torch._inductor.output_code import CompiledFxGraph

        plain = CompiledFxGraph.__call__

        def spy(graph: Any, inputs: Any) -> Any:
            self.calls.append((graph, list(inputs)))
            self.outputs = plain(graph, inputs)
            return self.outputs

        with mock.patch.object(CompiledFxGraph, "__call__", spy):
            return through(*args)

    def direct(self, args: Arguments, result: Any, written: Callable[[Arguments], Sequence[Tensor]]) -> Direct | None:
        """A direct call, if the graph's inputs and outputs are understood."""
        if len(self.calls) != 1 or None in self.getters or not all(map(_is_dynamic, self.examples)):
            return None
        longest_row = _longest_row(self.examples, self.coefficients)
        if longest_row is None:
            return None
        graph, given = self.calls[0]
        getters = [getter for getter in self.getters if getter is not None]
        expected = [getter(args) for getter in getters]
        if not _same(expected, given) or not _same(result or (), self.outputs or ()):
            return None
        return Direct(graph.current_callable, getters, longest_row, written)


def _source(node: torch.fx.Node) -> str:
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def _getter(source: str, names: Sequence[str]) -> Getter | None:
    """What fetches a graph's input from the function's arguments, by the name that dynamo gave it."""
    match = _SOURCE.fullmatch(source)
    if match is None or match[1] not in names:
        return None
    first = names.index(match[1])
    path: list[int | str] = [int(i) if i else name for i, name in _STEP.findall(match[2])]
    dim = int(match[3]) if match[3] else None

    def get(args: Arguments) -> Any:
        value = args[first]
        for step in path:
            value = getattr(value, step) if isinstance(step, str) else value[step]
        return value if dim is None else value.shape[dim]

    return get


def _is_dynamic(value: Any) -> bool:
    """Whether no size of an array was taken for a constant (columns have one that is 1 by contract)."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return True
    first, *rest = cast(Sequence[Any], value.shape)
    sizes = [first, *(size for size in rest if type(size) is not int or size != 1)]
    return all(isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None for size in sizes)


def _longest_row(examples: Sequence[Any], coefficients: Any) -> float | None:
    """The length of rows up to which the graph serves arrays of all sizes; None if it was made for special ones.

    That some sizes are equal the caller guarantees, and long rows are summed in another way. ``coefficients`` is the
    example of the coefficient vector, whose length never varies.
    """
    longest = math.inf
    columns = {str(e.shape[1]) for e in examples if isinstance(e, Tensor) and e.dim() == 2}
    sizes = [e for e in examples if isinstance(e, torch.SymInt)]
    fixed = set().union(*(s.node.expr.free_symbols for s in getattr(coefficients, "shape", ()) if hasattr(s, "node")))
    for guard in sizes[0].node.shape_env.guards if sizes else ():
        symbols = guard.expr.free_symbols - fixed
        is_constant = all(str(symbol).startswith("zf") for symbol in symbols)  # a float that the function closes over
        if is_constant or _says_equal(guard.expr):
            continue
        bound = _LIMIT.fullmatch(str(guard.expr))
        if bound is None or bound[1] not in columns:
            return None
        longest = min(longest, float(bound[2]))
    return longest


def _says_equal(expression: Any) -> bool:
    """Whether two sizes being equal is enough for a condition."""
    choices = expression.args if expression.func.__name__ == "Or" else (expression,)
    return any(choice.is_Equality and all(side.is_Symbol for side in choice.args) for choice in choices)


def _same(expected: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether two lists hold the same tensors and equal integers."""
    return len(expected) == len(given) and all(
        a is b if isinstance(a, Tensor) else a == b for a, b in zip(expected, given, strict=True)
    )
