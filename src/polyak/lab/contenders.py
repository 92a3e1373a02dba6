"""The optimizers that a comparison can hold: polyak's methods, any other library's, and the user's own.

::

    adamw                  a method of polyak
    torch.optim.AdamW      whatever can be imported and called
    mine.py:make           a function or a class of a file

A function of one's own takes the parameters and the setting, and returns an optimizer; where its first argument is
called ``model`` it gets the module instead. It may say where to look for its settings, as an attribute, or for all of a
file in a variable, ``space``::

    def make(params, lr, momentum=0.9):
        return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=True)

    make.space = {"lr": "1e-3:1:log", "momentum": "0.8,0.9,0.95"}

All get the same rules: an optimizer class with a ``weight_decay`` gets two groups, without decay on tensors of fewer
than two dimensions, as polyak's own do, so ``torch.optim.AdamW`` and ``adamw`` give the same figures. What a function
is given is the plain list of parameters.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyak import optim
from polyak.declare import SearchSpace
from polyak.lab.errors import BadInput, raised, suggestion
from polyak.lab.files import executed, read
from polyak.lab.source import INSTALLED, digest, files_of, files_of_module
from polyak.lab.space import declared, torch_space
from polyak.optim.create import KNOWN, arguments
from polyak.optim.create import build as build_method
from polyak.optim.method import Method

Make = Callable[..., Any]
METHODS = ("polyak.optim.methods.", "polyak.optim.layerwise.")


@dataclass(frozen=True)
class Contender:
    """One entry of a comparison: an optimizer, where its settings are looked for, and what is fixed.

    Args:
        name: what tables and charts call it.
        reference: the text by which any process finds it again.
        space: where a search looks.
        defaults: the published value of every argument that has one.
        fixed: values that every run uses.
        code: a digest of what it is: runs of other code are other runs.
        tuning_seed: added to the campaign's, so that the same method under several names is tuned apart.
        declares: whether its author said where to look.
        make: builds it from a module or parameters and a setting.
        taken: the arguments that it takes; None where any name is.
        probed: whether it can be built for a small model, to see what it refuses.
    """

    name: str
    reference: str
    space: SearchSpace
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    code: str
    tuning_seed: int = 0
    declares: bool = True
    make: Make = field(default=optim.create, repr=False, compare=False)
    taken: tuple[str, ...] | None = field(default=None, repr=False)
    probed: bool = field(default=True, repr=False)

    def takes(self, argument: str) -> bool:
        """Whether it has an argument of this name, as far as one can tell."""
        return self.taken is None or argument in self.taken

    def build(self, model_or_params: Any, **setting: Any) -> torch.optim.Optimizer:
        """The optimizer with a setting, and with what is fixed."""
        made = self.make(model_or_params, **{**self.fixed, **setting})
        if not isinstance(made, torch.optim.Optimizer):  # schedules and the clock need what it brings
            raise TypeError(f"{self.name} must give an optimizer, a torch.optim.Optimizer, got {made!r}")
        return made


def resolve(text: str, base: Path | None = None) -> Contender:
    """Find an optimizer.

    Args:
        text: a method of polyak, a dotted name, or ``path/to/file.py:name``.
        base: the folder from which a path counts, by default the present one.

    Raises:
        BadInput: there is no such thing; the nearest names are suggested.
    """
    if text in KNOWN:
        return _method(text, text, optim.get(text))
    if ".py:" in text:
        name, _, attribute = text.rpartition(":")
        return _of_file(((base or Path.cwd()) / name).resolve(), attribute)
    if "." in text:
        return _of_module(text)
    hint = "another library's is a dotted name like torch.optim.AdamW, your own path/to/file.py:function"
    raise BadInput(f"no method is named {text!r}; {suggestion(text, KNOWN)} ({hint})")


@cache
def found_again(reference: str) -> Contender:
    """:func:`resolve` for a process that makes many runs."""
    return resolve(reference)


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in the state of an optimizer, whoever wrote it."""
    return sum(t.numel() * t.element_size() for t in _tensors(getattr(optimizer, "state", {})))


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        return [t for value in state.values() for t in _tensors(value)]
    return [t for value in state for t in _tensors(value)] if isinstance(state, (list, tuple)) else []


def _method(name: str, reference: str, method: type[Method], path: Path | None = None) -> Contender:
    """A method of polyak, or a class derived from one: it gets the module, so that roles work."""
    hypers = arguments(method)

    def make(model_or_params: Any, **setting: Any) -> Method:
        return build_method(method, model_or_params, **setting)

    defaults = {hyper.name: hyper.default for hyper in hypers.values()}
    taken = tuple(name for name in method._fields if name != "params")
    return Contender(name, reference, method.search_space, defaults, {}, _code(method, path), make=make, taken=taken)


def _of_file(path: Path, attribute: str) -> Contender:
    reference = f"{path}:{attribute}"
    module = executed(path, read(path, f"the method's file {str(path)!r}"), str(path))
    found = _attribute(module, [attribute], str(path), reference)
    return _foreign(f"{path.name}:{attribute}", reference, found, getattr(module, "space", None), path)


def _of_module(text: str) -> Contender:
    parts = text.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                raise BadInput(f"{text}: {name} needs the module {missing.name!r}, which is not installed") from missing
            continue
        except Exception as error:
            raise raised(text, error) from error
        return _foreign(text, text, _attribute(module, parts[end:], name, text))
    raise BadInput(f"{text}: there is no module {parts[0]!r}; install it, or name a file: path/to/file.py:function")


def _attribute(owner: Any, names: list[str], place: str, text: str) -> Any:
    for name in names:
        if not hasattr(owner, name):
            there = vars(owner).items()
            known = [k for k, v in there if (callable(v) or isinstance(v, types.ModuleType)) and not k.startswith("_")]
            raise BadInput(f"{place} has no {name!r}; {suggestion(name, known)}")
        owner = getattr(owner, name)
    if not callable(owner):
        raise BadInput(f"{text} is {type(owner).__name__}; a method is a class or a function that makes an optimizer")
    return owner


def _foreign(name: str, reference: str, factory: Any, file_space: object = None, path: Path | None = None) -> Contender:
    if isinstance(factory, type) and issubclass(factory, Method):
        return _method(name, reference, factory, path)
    said = getattr(factory, "space", file_space)
    space = torch_space(factory) if said is None else declared(said, reference)
    parameters = _parameters(factory)
    # Where any name is taken, nothing can be said of a name.
    known = all(p.kind is not p.VAR_KEYWORD for p in parameters) and bool(parameters)
    taken = tuple(p.name for p in parameters[1:] if p.kind is not p.VAR_POSITIONAL) if known else None
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
    is_class = isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)
    if is_class and taken is not None and "weight_decay" in taken:
        make = _with_groups(factory)
    else:
        make = _plainly(factory, wants_module=bool(parameters) and parameters[0].name == "model")
    return Contender(
        name, reference, space or {}, defaults, {}, _code(factory, path),
        declares=space is not None, make=make, taken=taken, probed=is_class,
    )  # fmt: skip


def _parameters(factory: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # written in C
        return []


def _plainly(factory: Any, wants_module: bool) -> Make:
    def make(model_or_params: Any, **setting: Any) -> Any:
        if wants_module or not isinstance(model_or_params, nn.Module):
            return factory(model_or_params, **setting)
        return factory([p for p in model_or_params.parameters() if p.requires_grad], **setting)

    return make


def _with_groups(factory: Any) -> Make:
    def make(model_or_params: Any, **setting: Any) -> Any:
        if not isinstance(model_or_params, nn.Module):
            return factory(model_or_params, **setting)
        params = [p for p in model_or_params.parameters() if p.requires_grad]
        vectors, others = [p for p in params if p.ndim < 2], [p for p in params if p.ndim >= 2]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": vectors, "weight_decay": 0.0}]
        return factory([group for group in groups if group["params"]], **setting)

    return make


def _code(factory: Any, path: Path | None) -> str:
    """What it is: its file and what that imports from beside it; of an installed package the version alone.

    Of polyak's methods their own files count: what all of them share is in :func:`polyak.lab.spec.versions`.
    """
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    module = sys.modules.get(getattr(factory, "__module__", ""))
    ours = {Path(inspect.getfile(each)) for each in _bases(factory) if each.__module__.startswith(METHODS)}
    files = [(each.name, each.read_bytes()) for each in ours]
    if path is not None:
        files += files_of(path, path.read_bytes())
    elif not files:
        file = getattr(module, "__file__", None)
        if module is None or not file:
            return name
        top = module.__name__.partition(".")[0]
        if INSTALLED.intersection(Path(file).parts):
            return f"{name} {top} {getattr(sys.modules[top], '__version__', '')}"
        files += files_of_module(module)
    return f"{name} {digest(files)[:16]}"


def _bases(factory: Any) -> tuple[type, ...]:
    return factory.__mro__ if isinstance(factory, type) and issubclass(factory, Method) else ()
