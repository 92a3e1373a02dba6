"""The same methods in other libraries, with options that make them compute what polyak computes.

A library that is not installed is skipped, and said so once. A contender whose numbers still differ (see
:func:`deviation`) is measured, but marked and held against no goal.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _methods import BASES, METHODS, REST, Method
from torch import Tensor

from polyak import optim

Named = Mapping[Any, Tensor]
Build = Callable[[Named], "list[torch.optim.Optimizer]"]

LIBRARIES = ("torch.optim", "pytorch_optimizer", "timm", "optimi", "torchao.optim", "heavyball", "dion")
MOST_FOR_HEAVYBALL = 200  # tensors; compiling its lists of 1,000 mixed small tensors takes far over ten minutes


@dataclass(frozen=True)
class Contender:
    """One way to run a method."""

    label: str
    build: Build
    beside: str = ""  # polyak's variant to compare it with, "" for the plain one
    reference: str = ""  # another method of polyak, to be held against

    @property
    def ours(self) -> bool:
        """Whether it is polyak, with this method."""
        return self.label.startswith("polyak") and not self.reference


@functools.cache
def library(name: str) -> types.ModuleType | None:
    """The module that holds a library's optimizers, or None (and a line) where it cannot be imported."""
    try:
        return _timm_optim() if name == "timm" else importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: skipped ({error})")
        return None


def _timm_optim() -> types.ModuleType:
    """timm's optimizers without its models, which need torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None:
        raise ImportError("No module named 'timm'")
    if "timm" not in sys.modules:
        package, models = types.ModuleType("timm"), types.ModuleType("timm.models")
        package.__path__, models.__path__ = list(found.submodule_search_locations or ()), []
        models.group_parameters = None  # type: ignore[attr-defined]
        sys.modules |= {"timm": package, "timm.models": models}
    return importlib.import_module("timm.optim")


def contenders(method: str, execution: str, libraries: Sequence[str] = LIBRARIES) -> Iterator[Contender]:
    """polyak first, then every peer that is installed, each in all of its implementations."""
    spec = METHODS.get(method, Method({}))
    known = inspect.signature(optim.get(method)).parameters
    variants = {f"polyak {name}": also for name, also in spec.also.items() if known.keys() >= also.keys()}
    for label, more in {"polyak": {}, **variants}.items():
        yield Contender(label, functools.partial(_ours, method, {**spec.options, **more, "execution": execution}))
    for peer in spec.peers:
        module = library(peer.library) if peer.library in libraries else None
        if module is None:
            continue
        make = getattr(module, peer.name)
        builder = _muon if peer.name == "Muon" else _heavyball if peer.library == "heavyball" else _plain
        for label, switches in _implementations(make):
            build = functools.partial(builder, make, {**peer.options, **switches})
            yield Contender(f"{peer.library}{label}", build, peer.beside)


def references(method: str, execution: str) -> Iterator[Contender]:
    """AdamW of polyak, and the method that this one adds its work to."""
    for name in sorted({"adamw", BASES.get(method, "adamw")} - {method}):
        options = {**METHODS[name].options, "execution": execution}
        yield Contender(f"polyak {name}", functools.partial(_ours, name, options), reference=name)


def claimed_bytes(method: str, label: str) -> float:
    """Bytes of state a float32 weight in a large matrix that polyak says a contender needs."""
    spec = METHODS.get(method, Method({}))
    own = {**spec.options, **spec.also.get(label.removeprefix("polyak").strip(), {})}
    return optim.get(method).state_bytes_per_parameter(**own)


def _implementations(make: Any) -> Iterator[tuple[str, dict[str, bool]]]:
    known = inspect.signature(make).parameters
    fused = "fused" in known
    if "foreach" not in known:
        yield "", {}
        return
    yield "", {"foreach": False, **({"fused": False} if fused else {})}
    yield " foreach", {"foreach": True}
    if fused:
        yield " fused", {"fused": True}


def _plain(make: Any, options: Mapping[str, Any], params: Named) -> list[torch.optim.Optimizer]:
    return [make(list(params.values()), **options)]


def _heavyball(make: Any, options: Mapping[str, Any], params: Named) -> list[torch.optim.Optimizer]:
    """HeavyBall compiles as it does by default, but for very many tensors, where it would compile for hours."""
    utils = sys.modules["heavyball.utils"]
    default = utils.__dict__.setdefault("_default_compile_mode", utils.compile_mode)
    utils.compile_mode = default if len(params) <= MOST_FOR_HEAVYBALL else None
    return _plain(make, options, params)


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether a matrix method orthogonalizes this parameter."""
    return p.ndim >= 2 and "embed" not in name and "head" not in name and "token" not in name


def _split(params: Named) -> tuple[list[Tensor], list[Tensor]]:
    matrices = [p for name, p in params.items() if is_matrix(name, p)]
    return matrices, [p for name, p in params.items() if not is_matrix(name, p)]


def _ours(method: str, options: Mapping[str, Any], params: Named) -> list[torch.optim.Optimizer]:
    make = optim.get(method)
    known = inspect.signature(make).parameters
    if "aux_lr" not in known:
        return [make(list(params.values()), **options)]
    matrices, rest = _split(params)
    groups = [{"params": matrices, "role": "matrix"}, {"params": rest, "role": "rest"}]
    form = {"aux_eps_form": "after"} if "aux_eps_form" in known else {}
    return [make([g for g in groups if g["params"]], **{**options, **form})]


def _muon(make: Any, options: Mapping[str, Any], params: Named) -> list[torch.optim.Optimizer]:
    """Matrices to the library's Muon, the rest to its AdamW (torch's fused one where Muon has none)."""
    matrices, rest = _split(params)
    root = make.__module__.partition(".")[0]
    if root in ("pytorch_optimizer", "timm"):
        groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False, **REST}]
        return [make([g for g in groups if g["params"]], **options)]
    build = _heavyball if root == "heavyball" else _plain
    adamw = sys.modules["heavyball"].AdamW if root == "heavyball" else functools.partial(torch.optim.AdamW, fused=True)
    parts = [(make, options, matrices), (adamw, REST, rest)]
    return [one for part, its, ps in parts if ps for one in build(part, its, dict(enumerate(ps)))]


def deviation(first: Contender, other: Contender, steps: int = 8) -> float:
    """How far ``other`` moves small weights from where ``first`` moves them, relative to the way."""
    shapes = {"a": (64, 48), "b": (48, 96), "c": (40,), "d.weight": (32, 16)}
    start = {name: torch.randn(shape, generator=_generator(i)) for i, (name, shape) in enumerate(shapes.items())}
    ends = []
    for contender in (first, other):
        params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        built = contender.build(params)
        for t in range(steps):
            for i, p in enumerate(params.values()):
                p.grad = torch.randn(p.shape, generator=_generator(100 * t + i))
            for one in built:
                step(one)
        ends.append(torch.cat([(p.detach() - start[name]).flatten() for name, p in params.items()]))
    return float((ends[1] - ends[0]).norm() / ends[0].norm())


def step(optimizer: Any) -> None:
    """One step; polyak's are told a loss, for those that read one."""
    optimizer.step(**({"loss": 1.0} if isinstance(optimizer, optim.Optimizer) else {}))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
