"""Every method, in every execution mode, survives what happens in training and equals its own plain run.

The plain run goes tensor by tensor, eagerly, without interruption. The others are saved half way and continued in a
fresh process. What happens on the way is told in :mod:`tests.optim.scenario`.
"""

import functools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import polyak.optim
from polyak.aot import failed
from tests.optim.fresh import python
from tests.optim.scenario import DOUBLE, HALF, HALVES, KINDS, STEPS, Run

NAMES = polyak.optim.names()
# A kernel costs 10 s on a machine that has none yet: the others are compiled in the thorough runs.
COMPILED = ("adamw", "cadamw", "adamp", "adan")
QUICK = [(name, "batched", DOUBLE) for name in NAMES]
QUICK += [(name, "compiled", DOUBLE) for name in COMPILED]
QUICK += [(name, "batched", HALVES) for name in KINDS]
QUICK += [("adamw", "eager", DOUBLE)]
# each kernel takes some 10 s to compile: one method of each kind is compiled here, and all are in test_vectors.py
THOROUGH = {
    name: [(name, mode, d) for mode in ("eager", "batched") for d in (DOUBLE, HALVES)]
    + [(name, "compiled", d) for d in (DOUBLE, HALVES) if name in KINDS]
    for name in NAMES
}

Case = tuple[str, str, tuple[torch.dtype, torch.dtype]]


def title(case: Case) -> str:
    name, mode, dtypes = case
    return ".".join([name, mode, *(str(d).removeprefix("torch.") for d in dtypes)])


@functools.cache
def plain(name: str, dtypes: tuple[torch.dtype, torch.dtype]) -> dict[str, Tensor]:
    run = Run(name, "eager", dtypes)
    run.train(0, STEPS)
    return run.everything()


def continued(cases: list[Case], folder: Path, threads: int) -> dict[str, dict[str, Tensor] | str]:
    """The first half of all runs here, the second in one fresh process."""
    for case in cases:
        run = Run(*case)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # a compilation that failed
            run.train(0, HALF)
        check_explained(run, case[1])
        run.save(folder / f"{title(case)}.half")
    python("-m", "tests.optim.scenario", str(folder), threads=threads)
    return {title(case): torch.load(folder / f"{title(case)}.whole") for case in cases}


def check_explained(run: Run, mode: str) -> None:
    """What ``explain()`` says is what ran: the mode asked for, but for what it names."""
    text = run.optimizer.explain()
    assert text.splitlines()[0].endswith(f": {mode} (execution={mode!r})")
    assert "parameters" in text and not failed()
    exceptions = [line for line in text.splitlines() if "not compiled, a dimension is 1" in line]
    assert mode == "compiled" or not exceptions
    for line in exceptions:  # only tensors of one row: nothing large, nothing that merely shares a group
        for name in line.split(": ")[1].removesuffix(" more").split(" and ")[0].split(", "):
            assert run.params[name].numel() < 100, line


def tolerances(name: str, dtype: torch.dtype) -> dict[str, float]:
    """float64: rounding. float32: the same, 1e9 times as large. bfloat16 weights: two of their roundings, 2^-8 each."""
    if dtype == torch.float64:
        return {"rtol": 1e-10, "atol": 1e-12}
    return {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-7}


def check_equal(name: str, got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    for key, value in got.items():
        want = wanted[key]
        assert value.dtype == want.dtype and value.shape == want.shape, key
        far = ~torch.isclose(value, want, **tolerances(name, value.dtype))
        # In float32 a sign or a threshold may be met from the other side, once in some 1e7 numbers.
        allowed = 0 if value.dtype == torch.float64 else 2
        assert int(far.sum()) <= allowed, f"{key}: {int(far.sum())} of {far.numel()}, {value[far][:3]} {want[far][:3]}"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor] | str]:
    return continued(QUICK, tmp_path_factory.mktemp("quick"), threads=1)


def check(case: Case, runs: dict[str, dict[str, Tensor] | str]) -> None:
    got = runs[title(case)]
    assert not isinstance(got, str), got
    check_equal(case[0], got, plain(case[0], case[2]))


@pytest.mark.parametrize("case", QUICK, ids=title)
def test_run(case: Case, quick: dict[str, dict[str, Tensor] | str]) -> None:
    check(case, quick)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_run(name: str, tmp_path: Path) -> None:
    runs = continued(THOROUGH[name], tmp_path, threads=2)
    for case in THOROUGH[name]:
        check(case, runs)
