"""Kernels: one pass of a chain over dense arrays, plain or under ``torch.compile``.

Every kernel has a code object of its own (dynamo counts recompilations per code object) and is fed only dense,
detached arrays whose dimensions are 2 or more, with all coefficients in one float64 vector: then one graph serves
every model and every hyperparameter. Kernels are shared by all optimizers of the process.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polyak.optim.context import Dialogue, Flow
from polyak.optim.direct import Direct, Prepared, Watch
from polyak.optim.rule import Chain

_kernels: dict[tuple[Any, ...], Kernel] = {}
_failed = False


def _guards(entries: Sequence[Any]) -> list[bool]:
    """All that a kernel closes over is fixed when it is made, so only its tensors and their sizes need guarding."""
    return [entry.guard_type in ("TENSOR_MATCH", "SHAPE_ENV") for entry in entries]


def high(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a weight of ``dtype`` is computed in."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def evaluate(
    chain: Chain,
    names: list[list[str]],
    maximize: bool,
    p: Tensor,
    g: Tensor,
    memories: tuple[Tensor, ...],
    scalars: Tensor,
    answers: Any,
    numel: Any,
    notes: dict[str, Tensor] | None = None,
) -> tuple[Flow, dict[str, Tensor], Dialogue]:
    """Run the chain on arrays; half precision is computed in float32. Writes nothing."""
    dtype = high(p.dtype)
    weight, gradient = p.to(dtype), g.to(dtype)
    if numel is not None:
        # A column of exact ones. Without it the compiler loops over what needs no column by itself, and then stores
        # the direction for a second loop, a temporary as large as the weight.
        gradient = gradient * (numel / numel)
    if maximize:
        gradient = -gradient
    coefficients, i = [], 0
    for rule_names in names:
        values = {}
        for name in rule_names:
            values[name] = scalars[i]
            i += 1
        coefficients.append(values)
    old = {slot.name: memory.to(dtype) for slot, memory in zip(chain.slots, memories, strict=True)}
    dialogue = Dialogue(answers, numel)
    dialogue.notes = notes
    x, new = chain.run(Flow(gradient, gradient, weight, weight, 1.0), old, coefficients, dialogue)
    return x, new, dialogue


def _make(chain: Chain, names: list[list[str]], level: int | None, maximize: bool) -> Callable[..., Any]:
    """The function of one pass: up to question ``level``, or (``None``) to the end, writing weight and memories."""
    slots = chain.slots

    def kernel(p: Tensor, g: Tensor, memories: tuple[Tensor, ...], scalars: Tensor, answers: Any, numel: Any) -> Any:
        x, new, dialogue = evaluate(chain, names, maximize, p, g, memories, scalars, answers, numel)
        if level is not None:
            return dialogue.open
        for slot, memory in zip(slots, memories, strict=True):
            if slot.name in new:
                memory.copy_(new[slot.name])
        p.copy_(x.w)
        return None

    title = "polyak_" + "_".join(rule.name for rule in chain) + ("" if level is None else f"_{level}")
    code = kernel.__code__.replace(co_name=title)
    return types.FunctionType(code, globals(), title, None, kernel.__closure__)


class Kernel:
    """One pass of a chain. Call it with ``compiled=True`` for arrays that meet the module's contract."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self._compiled: Callable[..., Any] | None = None
        self._direct: Direct | None = None

    def __call__(self, compiled: bool, *args: Any) -> Any:
        if not compiled or _failed:
            return self.plain(*args)
        if self._direct is not None and self._direct.serves(args[0]):
            return self._direct(*args)
        return self._first(args) if self._compiled is None else self._compiled(*args)

    def prepared(self, *args: Any) -> Prepared | None:
        """The call with all but gradient and coefficients filled in, where it goes straight to the graph."""
        return self._direct.prepared(args) if self._direct is not None and self._direct.serves(args[0]) else None

    def _first(self, args: tuple[Any, ...]) -> Any:
        """Compile; if that fails, say so once and run plain from then on. Compilation fails before anything runs."""
        global _failed
        watch = Watch()
        try:
            compiled = torch.compile(
                self.plain, backend=watch.backend, dynamic=True, fullgraph=True, options={"guard_filter_fn": _guards}
            )
            from torch.fx.experimental import _config as shapes  # here: compiling is not for import time

            # a first array that happens to be square must not make a graph for squares
            with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                result, self._direct = watch.first(compiled, args)
        except Exception as error:
            _failed = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {reason}); polyak runs execution='batched' instead",
                RuntimeWarning,
                stacklevel=2,
            )
            return self.plain(*args)
        self._compiled = compiled
        return result


def compile_failed() -> bool:
    """Whether a compilation failed in this process, so that everything runs batched."""
    return _failed


def get(chain: Chain, names: list[list[str]], level: int | None, maximize: bool, *dtypes: Any) -> Kernel:
    """The kernel of a pass; ``dtypes`` (and device) keep graphs of different types in different code objects."""
    key = (chain, level, maximize, *dtypes)
    found = _kernels.get(key)
    if found is None:
        found = _kernels[key] = Kernel(_make(chain, names, level, maximize))
    return found
