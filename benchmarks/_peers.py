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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polyak import optim

Named = Mapping[Any, Tensor]
Build = Callable[[Named], "list[torch.optim.Optimizer]"]

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
ADAN = {"lr": 1e-3, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 1e-2}
BALL = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}
BELIEF = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 1e-2, "rectify": True}
LION = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 1e-2}
MIX = {"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 2.0, "eps": 1e-8, "weight_decay": 1e-2}
MATRIX = {"lr": 2e-2, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 1e-2}
REST = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}
HEAVY_BALL = {"lr": 1e-2, "beta": 0.9, "weight_decay": 1e-2}
NESTEROV = {**BALL, "nesterov": True}
LIBRARIES = ("torch.optim", "pytorch_optimizer", "timm", "optimi", "torchao.optim", "heavyball")
EIGHT_BITS = {"int8": {"state_storage": "int8"}}
MOST_FOR_HEAVYBALL = 200  # tensors; compiling its lists of 1,000 mixed small tensors takes far over ten minutes


@dataclass(frozen=True)
class Peer:
    """A class of another library, its options, and the name of polyak's variant that stores as it does."""

    library: str
    name: str
    options: Mapping[str, Any]
    beside: str = ""


@dataclass(frozen=True)
class Method:
    """polyak's options for a method, the peers that have it, and polyak once more with other options."""

    options: Mapping[str, Any]
    peers: tuple[Peer, ...] = ()
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def _torch(name: str, options: Mapping[str, Any]) -> Peer:
    return Peer("torch.optim", name, options)


def _timm(name: str, options: Mapping[str, Any], caution: bool = False) -> Peer:
    return Peer("timm", name, {**options, "caution": True} if caution else options)


def _po(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("pytorch_optimizer", name, {**options, **more})


def _heavy(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("heavyball", name, {**options, **more})


def _optimi(name: str, options: Mapping[str, Any], **more: Any) -> Peer:
    return Peer("optimi", name, {**options, **more})


def _torchao(name: str, options: Mapping[str, Any]) -> Peer:
    return Peer("torchao.optim", name, options, "int8")


# A method that is not listed here runs alone, with its defaults. The TAM of pytorch_optimizer is another rule.
METHODS: dict[str, Method] = {
    "sgd": Method(BALL, (_torch("SGD", BALL), _optimi("SGD", BALL, torch_init=True))),
    "adam": Method(ADAM, (_torch("Adam", ADAM), _optimi("Adam", ADAM), _torchao("Adam8bit", ADAM)), EIGHT_BITS),
    "adamw": Method(
        ADAM,
        (
            _torch("AdamW", ADAM),
            _timm("AdamWLegacy", ADAM),
            _optimi("AdamW", ADAM),
            _torchao("AdamW8bit", ADAM),
            _heavy("AdamW", ADAM),
        ),
        EIGHT_BITS,
    ),
    "adan": Method(ADAN, (_po("Adan", ADAN), _timm("Adan", ADAN), _optimi("Adan", ADAN))),
    "lion": Method(LION, (_po("Lion", LION), _timm("Lion", LION), _optimi("Lion", LION))),
    "adabelief": Method(BELIEF, (_po("AdaBelief", BELIEF), _timm("AdaBelief", BELIEF))),
    "ademamix": Method(MIX, (_po("AdEMAMix", MIX, weight_decouple=True), _heavy("AdEMAMix", MIX))),
    "adamp": Method(ADAM, (_po("AdamP", ADAM), _timm("AdamP", ADAM))),
    "sgdp": Method(NESTEROV, (_po("SGDP", NESTEROV), _timm("SGDP", NESTEROV))),
    "cadamw": Method(ADAM, (_timm("AdamWLegacy", ADAM, True), _heavy("AdamW", ADAM, caution=True))),
    "clion": Method(LION, (_po("Lion", LION, cautious=True), _timm("Lion", LION, True))),
    "cadan": Method(ADAN, (_timm("Adan", ADAN, True),)),
    "csgdm": Method(BALL, (_timm("SGDW", BALL, True), _heavy("SGD", HEAVY_BALL, caution=True))),
    "grams": Method({**ADAM, "eps_form": "after"}, (_po("Grams", ADAM),)),
    "tam": Method(BALL),
    "muon": Method(
        MATRIX,
        (
            _torch("Muon", {**MATRIX, "eps": 1e-7}),
            _po("Muon", {**MATRIX, "ns_coeffs": "original"}),
            _timm("Muon", {**MATRIX, "ns_coefficients": "original", "adjust_lr_fn": "original"}),
            _heavy("Muon", {"lr": 2e-2, "betas": (0.95, 0.99), "nesterov": True, "weight_decay": 1e-2}),
        ),
        {"bfloat16": {"ns_dtype": torch.bfloat16}},
    ),
}


@dataclass(frozen=True)
class Contender:
    """One way to run a method."""

    label: str
    build: Build
    beside: str = ""  # polyak's variant to compare it with, "" for the plain one

    @property
    def ours(self) -> bool:
        """Whether it is polyak."""
        return self.label.startswith("polyak")


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
    if "aux_lr" not in inspect.signature(make).parameters:
        return [make(list(params.values()), **options)]
    matrices, rest = _split(params)
    groups = [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}]
    return [make([g for g in groups if g["params"]], **{**options, "aux_eps_form": "after"})]


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
