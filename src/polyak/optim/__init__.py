"""Optimizers, and the rules that they are chained from.

Use a method by its class (``polyak.optim.Adan(model.parameters())``) or by name (``polyak.optim.create("adan",
model)``); write your own with ``Optimizer(params, chain(...))`` and the vocabulary in :mod:`polyak.optim.rules`, or a
class of your own derived from :class:`Method`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from polyak.declare import Choice, Hyper, Interval, Paper, Range
from polyak.optim import layerwise, methods, rules
from polyak.optim.create import create, families, get, names
from polyak.optim.engine.chain import Chain, chain
from polyak.optim.engine.context import Context, Flow
from polyak.optim.engine.optimizer import Optimizer
from polyak.optim.engine.release import Released, release_gradients
from polyak.optim.engine.rule import Rule, Shared, Slot, factory
from polyak.optim.groups import roles_of
from polyak.optim.layerwise import *  # noqa: F403
from polyak.optim.method import MatrixMethod, Method
from polyak.optim.methods import *  # noqa: F403
from polyak.optim.sparsify import SparseLayers, sparsify
from polyak.optim.switch import switch

if TYPE_CHECKING:
    from polyak.optim import drivers, lenses, solvers, spectrum
else:

    def __getattr__(name: str) -> Any:
        """Parts that few need are loaded at their first use."""
        if name in ("drivers", "lenses", "solvers", "spectrum"):
            return importlib.import_module(f"polyak.optim.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Chain",
    "Choice",
    "Context",
    "Flow",
    "Hyper",
    "Interval",
    "MatrixMethod",
    "Method",
    "Optimizer",
    "Paper",
    "Range",
    "Released",
    "Rule",
    "Shared",
    "Slot",
    "SparseLayers",
    "chain",
    "create",
    "drivers",
    "factory",
    "families",
    "get",
    "lenses",
    "names",
    "release_gradients",
    "roles_of",
    "rules",
    "solvers",
    "sparsify",
    "spectrum",
    "switch",
]
__all__ += methods.__all__ + layerwise.__all__
