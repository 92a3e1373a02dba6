"""What a training problem is, the problems that come with polyak, and loading the user's own.

A problem of your own is a function that returns a :class:`Problem`::

    # train.py
    import torch
    from torch import nn
    from polyak.lab import Problem

    def problem() -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(600, 8, generator=generator)
        y = (x @ torch.linspace(-1, 1, 8))[:, None]
        data = {"train": slice(0, 400), "validation": slice(400, 500), "test": slice(500, 600)}

        def train_batches(seed):
            order = torch.Generator().manual_seed(seed)
            while True:
                rows = torch.randint(400, (32,), generator=order)
                yield x[rows], y[rows]

        def loss(model, batch):
            inputs, wanted = batch
            return nn.functional.mse_loss(model(inputs), wanted)

        def evaluate(model, split):
            return loss(model, (x[data[split]], y[data[split]])).item()

        return Problem(
            name="line",
            build_model=lambda seed: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)),
            train_batches=train_batches,
            loss=loss,
            evaluate=evaluate,
            metric="mean squared error",
            higher_is_better=False,
            target=0.05,
            steps=200,
        )

and is compared with ``polyak compare train.py:problem``. A run is made again when this file has changed; modules that
it imports and data that it reads are not looked at, so change the file, or take a new store, when those change.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polyak.lab.errors import BadInput, suggestion

BUILTIN = {
    "digits-cnn": ("polyak.lab.builtin.digits", "cnn"),
    "digits-vit": ("polyak.lab.builtin.digits", "vit"),
    "noisy-digits": ("polyak.lab.builtin.digits", "noisy"),
    "multitask-digits": ("polyak.lab.builtin.digits", "multitask"),
    "wine-mlp": ("polyak.lab.builtin.tables", "wine"),
    "diabetes-regression": ("polyak.lab.builtin.tables", "diabetes"),
    "stdlib-lm": ("polyak.lab.builtin.stdlib_lm", "language_model"),
    "stdlib-lm-large-batch": ("polyak.lab.builtin.stdlib_lm", "large_batch"),
    "heavy-tail": ("polyak.lab.builtin.synthetic", "heavy_tail"),
    "delay-k": ("polyak.lab.builtin.synthetic", "delay_k"),
    "deep-linear": ("polyak.lab.builtin.synthetic", "deep_linear"),
    "rosenbrock": ("polyak.lab.builtin.analytic", "rosenbrock"),
    "illconditioned": ("polyak.lab.builtin.analytic", "illconditioned"),
}
# These read data of the user's, named after a colon; the third entry says which.
FROM_FILES = {
    "cifar10": ("polyak.lab.builtin.cifar10", "cifar10", "the folder cifar-10-batches-py or cifar-10-batches-bin"),
    "imagefolder": ("polyak.lab.builtin.imagefolder", "image_folder", "a folder with a folder of pictures a class"),
    "textfile": ("polyak.lab.builtin.textfile", "text_file", "a text file"),
}


@dataclass(frozen=True)
class Problem:
    """A model, its data and how it is judged.

    Args:
        name: what tables and charts call it.
        build_model: the untrained model of a seed. The global generators are seeded with the same seed just
            before, so ordinary layers need no generator.
        train_batches: the training batches of a seed, an endless iterator or one epoch. When it ends, it is asked
            again with another seed.
        loss: the loss of a model on a batch, a tensor with one element.
        evaluate: the metric of a model on ``"validation"`` or ``"test"``. The model is in ``eval()`` mode and no
            gradient is recorded. Tuning asks for ``"validation"`` alone; ``"test"`` is asked once, at the end of
            each run that is reported.
        metric: what ``evaluate`` returns, in words.
        higher_is_better: whether a higher metric is better.
        steps: how many steps a run takes (``--steps`` overrides it).
        target: the validation metric at which the problem counts as solved; the report says how soon it was met.
        description: a sentence for the report.
    """

    name: str
    build_model: Callable[[int], nn.Module]
    train_batches: Callable[[int], Iterator[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module, str], float]
    metric: str
    higher_is_better: bool
    steps: int
    target: float | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Problem {self.name!r}: steps must be a positive integer, got {self.steps!r}")
        for part in ("build_model", "train_batches", "loss", "evaluate"):
            if not callable(getattr(self, part)):
                raise TypeError(f"Problem {self.name!r}: {part} must be callable, got {getattr(self, part)!r}")

    def better(self, a: float, b: float) -> bool:
        """Whether metric ``a`` is better than metric ``b``."""
        return a > b if self.higher_is_better else a < b

    def solved(self, metric: float) -> bool:
        """Whether a metric meets the target; never without one."""
        return self.target is not None and (self.better(metric, self.target) or metric == self.target)


@dataclass(frozen=True)
class LoadedProblem:
    """A problem, the reference it was loaded from, and the digest of its source."""

    reference: str
    digest: str
    problem: Problem = field(compare=False)


def load(reference: str) -> LoadedProblem:
    """Load a built-in problem by name or ``name:path/to/data``, or the user's by ``path/to/file.py:function``."""
    name, _, data = reference.partition(":")
    if name in FROM_FILES:
        return _load_on_data(name, data)
    if ".py:" in reference:
        return _load_file(reference)
    if reference not in BUILTIN:
        near = suggestion(reference, [*BUILTIN, *FROM_FILES])
        raise BadInput(f"unknown problem {reference!r}; {near} (a problem of your own is path/to/file.py:function)")
    return _load_builtin(reference, *BUILTIN[reference])


def _load_on_data(name: str, data: str) -> LoadedProblem:
    module_name, function, wanted = FROM_FILES[name]
    if not data:
        raise BadInput(f"{name} needs {wanted}: {name}:path/to/it")
    path = Path(data).expanduser().resolve()
    if not path.exists():
        raise BadInput(f"{name}: there is no {str(path)!r}; name {wanted}")
    try:
        return _load_builtin(f"{name}:{path}", module_name, function, path)
    except OSError as error:
        raise BadInput(f"{name} cannot read {error.filename or str(path)!r}: {error.strerror or error}") from error


def _load_builtin(reference: str, module_name: str, function: str, *data: Path) -> LoadedProblem:
    module = importlib.import_module(module_name)
    source = Path(str(module.__file__)).read_bytes()
    made = getattr(module, function)(*data)
    return LoadedProblem(reference, _digest(source, ":".join([function, *map(str, data)])), made)


def _digest(source: bytes, function: str) -> str:
    return hashlib.sha256(source + b"\0" + function.encode()).hexdigest()


def _load_file(reference: str) -> LoadedProblem:
    name, _, function = reference.rpartition(":")
    path = Path(name).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        near = suggestion(path.name, sorted(p.name for p in path.parent.glob("*.py"))) if path.parent.is_dir() else ""
        raise BadInput(f"cannot read the problem file {name!r}: {error.strerror}; {near}".rstrip("; ")) from error
    digest = _digest(source, function)
    module = types.ModuleType(f"polyak_problem_{digest[:12]}")
    module.__file__ = str(path)
    made = _call(_execute(module, source, reference), function, reference)
    if not isinstance(made, Problem):
        raise BadInput(f"{reference} must return a polyak.lab.Problem, got {type(made).__name__}")
    return LoadedProblem(f"{path}:{function}", digest, made)


def _execute(module: types.ModuleType, source: bytes, reference: str) -> types.ModuleType:
    """Run exactly the bytes that were digested, as a module whose neighbours can be imported."""
    path = Path(str(module.__file__))
    sys.modules[module.__name__] = module  # dataclasses and pickle look it up there
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise _raised(reference, error) from error
    return module


def _call(module: types.ModuleType, function: str, reference: str) -> object:
    made = getattr(module, function, None)
    if not callable(made):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadInput(f"{module.__file__} has no function {function!r}; {suggestion(function, known)}")
    try:
        return made()
    except Exception as error:
        raise _raised(reference, error) from error


def _raised(reference: str, error: Exception) -> BadInput:
    """The mistake in one line, with the user's own line of code where there is one."""
    if isinstance(error, BadInput):
        return error
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return BadInput(f"{reference} raised {type(error).__name__}: {error}{where}")
