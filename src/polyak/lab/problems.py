"""The problems that come with polyak, and loading the user's own.

A problem is a function that returns a :class:`Problem`, and is compared with ``polyak compare train.py:problem``.
One that you have a training script for brings its own loop::

    def train(make_optimizer, seed, report, split):
        model = build_model()                               # the global generators were seeded with the seed
        optimizer = make_optimizer(model)                   # the method under test, with the trial's hyperparameters
        for step in range(1, 1001):
            loss = train_one_step(model, optimizer)
            if step % 100 == 0:
                report(step, accuracy(model, "validation"), loss=loss)
        return accuracy(model, split)

    def problem():
        return Problem(name="mine", train=train, metric="accuracy", higher_is_better=True)

``make_optimizer(model_or_params, **fixed)`` takes arguments that are not tuned, and may be called for each of several
optimizers. A group of parameters may switch a tuned argument off (``weight_decay=0.0``) and set no other value of it.
``report(step, value, loss=loss)`` feeds curves, target and the decision to stop a hopeless run; ``value`` or ``loss``
may be left out. It ends a run by raising :class:`~polyak.lab.loops.StopRun`, which is no ``Exception``, so that
ordinary handlers let it pass; ``finally`` blocks are run. ``report.folder`` is a folder of the run's own, for
checkpoints, since the working folder is shared by runs at the same time; it is removed when the run ends. ``split`` is
``"validation"`` while a method is tuned and ``"test"`` in the runs that are reported: judge on it what you would keep.
What is returned is the metric, or a dict that has it under the name ``metric`` and others beside it. What lies between
a step of the optimizer and the report of a value counts as evaluation, and its time is left out of the time to target.

A simple loop needs no code of yours, only its parts::

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

A run is made again when what it computes has changed: the code of the file, of all your own modules that it
imports, and the problem's fingerprint (:mod:`polyak.lab.check`). Comments, docstrings, name, description and target
change nothing, and tuning is kept when only code under ``if split == "test":`` has changed.
"""

from __future__ import annotations

import importlib
import types
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from polyak.lab.carried import SUFFIX, carry, file_of, unpack
from polyak.lab.errors import BadInput, raised, suggestion
from polyak.lab.files import as_script, execute, loading, read
from polyak.lab.problem import Problem
from polyak.lab.seeding import seeded
from polyak.lab.source import digest, files_of

__all__ = ["BUILTIN", "LoadedProblem", "Problem", "load"]

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
HERE = "object "  # what the reference of a problem begins with that only this process knows
SEED = 0  # of the global generators while a problem is loaded


@dataclass(frozen=True)
class LoadedProblem:
    """A problem and the reference it was loaded from.

    Args:
        reference: the name or ``path/to/file.py:function``, with the whole path.
        digest: of its code, as far as runs judged on the test split depend on it.
        problem: the problem.
        tuning_digest: of its code as far as tuning depends on it; empty where that is the same.
        fingerprint: how it behaves, as :func:`polyak.lab.check.look` found; empty before.
        seconds_per_run: about how long a run takes, by the same look; None where nobody knows.
        device: where it is put, "cuda" or "cpu"; empty where that is left to it.
    """

    reference: str
    digest: str
    problem: Problem = field(compare=False)
    tuning_digest: str = ""
    fingerprint: str = ""
    seconds_per_run: float | None = field(default=None, compare=False)
    device: str = ""

    @property
    def is_here(self) -> bool:
        """Whether only this process knows it."""
        return self.reference.startswith(HERE)

    def source(self, split: str) -> str:
        """The digest of the code that runs judged on a split depend on."""
        return (split == "validation" and self.tuning_digest) or self.digest


_here: dict[int, LoadedProblem] = {}  # by the identity of the Problem


def load(problem: str | Problem | Callable[[], Problem]) -> LoadedProblem:
    """Load a built-in problem by name or ``name:path/to/data``, the user's by ``path/to/file.py:function`` or itself.

    A :class:`Problem` is known to this process alone, under a name that no other process gives to anything.

    The global generators are seeded meanwhile, so that a split drawn from them is the same in every process.
    """
    if isinstance(problem, Problem):
        name = HERE + uuid.uuid4().hex
        return _here.setdefault(id(problem), LoadedProblem(name, name, problem))
    reference = problem if isinstance(problem, str) else _reference(problem)
    with loading(), seeded(SEED):
        if reference.endswith(SUFFIX):
            return _load_carried(reference)
        name, _, data = reference.partition(":")
        if name in FROM_FILES:
            return _load_on_data(name, data)
        return _load_file(reference) if ".py:" in reference else _load_known(reference)


def _reference(problem: Callable[[], Problem]) -> str:
    if not callable(problem):
        raise BadInput(f"a problem is a name, a Problem or a function that returns one, got {problem!r:.80}")
    return file_of(problem) or carry(problem)


def _load_carried(reference: str) -> LoadedProblem:
    function, whole, tuning = unpack(reference)
    return LoadedProblem(reference, whole, _made(function, getattr(function, "__name__", "the problem")), tuning)


def _load_known(reference: str) -> LoadedProblem:
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
    path = Path(str(module.__file__))
    made = getattr(module, function)(*data)
    return _loaded(reference, path, path.read_bytes(), function, made, *map(str, data))


def _load_file(reference: str) -> LoadedProblem:
    name, _, function = reference.rpartition(":")
    path = Path(name).resolve()
    source = read(path, f"the problem file {name!r}")
    module = execute(path, source, reference)
    with as_script(path):
        made = _call(module, function, reference)
    return _loaded(f"{path}:{function}", path, source, function, made)


def _loaded(reference: str, path: Path, source: bytes, function: str, made: Problem, *data: str) -> LoadedProblem:
    files = files_of(path, source)
    tuning = digest(files, function, *data, split="validation")
    return LoadedProblem(reference, digest(files, function, *data), made, tuning)


def _call(module: types.ModuleType, function: str, reference: str) -> Problem:
    made = getattr(module, function, None)
    if not callable(made):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadInput(f"{module.__file__} has no function {function!r}; {suggestion(function, known)}")
    return _made(made, reference)


def _made(function: Callable[[], object], reference: str) -> Problem:
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise raised(reference, error) from error
    if not isinstance(made, Problem):
        raise BadInput(f"{reference} must return a polyak.lab.Problem, got {type(made).__name__}")
    return made
