"""polyak: everything momentum does in machine learning, for PyTorch.

The parts load when first used, so ``import polyak`` by itself imports nothing, not even torch:

- ``polyak.optim``: optimizers, and the rules that they are chained from.
- ``polyak.teachers``: averages of weights, schedules, queues and MoCo.
- ``polyak.local``: train in gradient-isolated blocks with little memory: MAN and its relatives.
- ``polyak.federated``: learn over workers, of which some may be faulty.
- ``polyak.distributed``: workers of torch.distributed that meet once a period, or one at a time.
- ``polyak.memory``: the pure tensor functions that all of these are written with.
- ``polyak.lab``: compare methods on a problem (``pip install polyak[lab]``).
- ``polyak.testing``: checks for rules and optimizers of your own.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyak import distributed, federated, lab, local, memory, optim, teachers, testing

__version__ = "0.1.0.dev0"

__all__ = ["__version__", "distributed", "federated", "lab", "local", "memory", "optim", "teachers", "testing"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"polyak.{name}")
    raise AttributeError(f"module 'polyak' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
