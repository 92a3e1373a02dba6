"""How a problem behaves before training, as a digest.

It holds names, shapes and values of the initial weights, then of a declared problem the first losses and the
validation metric, of a train function what it reports up to its first step and the gradient there. It is taken in
every process that makes runs; where it differs, the processes do not have the same problem. It is a part of a run's
key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from polyak.lab.loops import StopRun, parameters_of
from polyak.lab.problem import Metrics, Problem, number
from polyak.lab.reporting import Report
from polyak.lab.seeding import seed_everything
from polyak.lab.train import built, endless, evaluated, loss_of

SEED = 0
DIGITS = 4  # of a figure in a fingerprint: machines and threads do not change them
GRADIENT_DIGITS = 3  # some GPU kernels add up in any order
REPORTS = 3  # without a step, after which nobody waits for one


def fingerprint(problem: Problem) -> str:
    """How a problem behaves before training, as a digest."""
    seed_everything(SEED)
    marks = _of_parts(problem) if problem.train is None else _of_loop(problem)
    return hashlib.sha256(repr(list(marks)).encode()).hexdigest()[:16]


def _of_parts(problem: Problem) -> Iterator[Any]:
    model = built(problem, SEED)
    yield from weights(model)
    model.train()
    batches = endless(problem, SEED)
    for _ in range(2):
        yield _rounded(loss_of(problem, model, next(batches)).item())
    metric, others, _ = problem.judged(evaluated(problem, model, "validation"))
    yield _rounded(metric)
    yield {name: _rounded(value) for name, value in others.items()}


def _of_loop(problem: Problem) -> list[Any]:
    beginning = _Beginning(problem)
    assert problem.train is not None
    try:
        with Report(beginning.report) as report:
            problem.train(beginning.make_optimizer, SEED, report, "validation")
    except StopRun:
        pass
    except (Exception, SystemExit):
        if not beginning.optimizers:
            raise
        # It may need something of the methods that are compared; what is wrong shows when it is run with them.
    return beginning.marks


class _Beginning:
    """Runs a train function up to its first step, with an optimizer that is none of those compared."""

    def __init__(self, problem: Problem) -> None:
        self.marks: list[Any] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self._problem, self._reports, self._is_over = problem, 0, False

    def make_optimizer(self, model_or_params: Any, **fixed: Any) -> torch.optim.Optimizer:
        entries = _listed(model_or_params)
        self.marks += weights(entries)
        groups = [entry for entry in entries if isinstance(entry, dict)] or [{"params": entries}]
        trained = [{**fixed, **group, "params": _trained(group["params"])} for group in groups]
        try:
            optimizer = torch.optim.AdamW(trained)
        except Exception as error:  # weights that have no shape yet
            self._end(error)
        optimizer.register_step_pre_hook(self._at_step)
        self.optimizers.append(optimizer)
        return optimizer

    def report(self, step: int, value: Metrics | None = None, *, loss: float | Tensor | None = None) -> None:
        if self._is_over:
            self._end()
        if loss is not None:
            self.marks.append(_rounded(number(loss, "report(loss=...)")))
        if value is not None:
            self.marks.append(_rounded(self._problem.judged(value)[0]))
        self._reports += 1
        if self.optimizers and self._reports == REPORTS:
            self._end()

    def _at_step(self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not self._is_over:
            closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
            if callable(closure):
                with torch.enable_grad():
                    closure()
            self.marks += _gradient(self.optimizers)
        self._end()

    def _end(self, cause: BaseException | None = None) -> NoReturn:
        self._is_over = True
        raise StopRun("only the beginning was asked for") from cause


def _listed(model_or_params: Any) -> list[Any]:
    """What an optimizer is made for as a list of names with tensors or of groups, none of them a mere iterator."""
    if isinstance(model_or_params, nn.Module):
        return list(model_or_params.named_parameters())
    entries = [model_or_params] if isinstance(model_or_params, Tensor) else list(model_or_params)
    return [{**e, "params": _listed(e["params"])} if isinstance(e, dict) else e for e in entries]


def _trained(entries: list[Any]) -> list[Tensor]:
    return [p for _, p in _named(entries) if p.requires_grad]


def weights(model_or_params: Any) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and values, the latter in :data:`DIGITS` digits, of what an optimizer is made for."""
    found: list[tuple[str, tuple[int, ...], str]] = []
    for name, p in _named(_listed(model_or_params)):
        if isinstance(p, nn.parameter.UninitializedParameter):
            found.append((name, (), "uninitialized"))
            continue
        found.append((name, tuple(p.shape), _rounded(_weighed(p))))
    return found


def _gradient(optimizers: Iterable[torch.optim.Optimizer]) -> list[Any]:
    """How many gradients there are, and all of them in one figure."""
    found = [p.grad for optimizer in optimizers for p in parameters_of(optimizer) if p.grad is not None]
    return [len(found), _rounded(sum(map(_weighed, found)), GRADIENT_DIGITS)]


def _weighed(tensor: Tensor) -> float:
    """A sum of positive terms, so that it depends on every value and no rounding is blown up."""
    values = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    values = (torch.view_as_real(values) if values.is_complex() else values).double().flatten()
    place = torch.linspace(1, 2, len(values), dtype=values.dtype, device=values.device)
    return ((values.abs() + values.relu()) * place).sum().item()


def _named(entries: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    for i, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield from _named(entry["params"])
        else:
            yield entry if isinstance(entry, tuple) else (str(i), entry)


def _rounded(value: float, digits: int = DIGITS) -> str:
    return f"{value:.{digits}g}"
