"""Measuring: interleaved times, memory bandwidth, temporary memory, and what the machine is."""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Action = Callable[[], Any]


def machine(device: str) -> dict[str, Any]:
    """What is worth knowing of the machine beside a time."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": clock_of(device).__name__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def timed(action: Action, device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that an action takes, until the device has finished."""
    wait(device)
    start = clock()
    action()
    wait(device)
    return clock() - start


def clock_of(device: str) -> Callable[[], float]:
    """The clock: of one CPU thread the time that it computed, so that other work on the machine does not count."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def wait(device: str) -> None:
    """Wait for a GPU; nothing to do for a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    actions: Mapping[str, Action], prepare: Action, device: str, rounds: int, limit_s: float, least: int = 3
) -> dict[str, list[float]]:
    """Seconds of every action in every round; in each round all run once, in random order.

    So a slow spell of the machine, and what an action leaves in the caches, hits all alike. Ends early, but not before
    ``least`` rounds, when ``limit_s`` is over. The garbage collector is off meanwhile, as in ``timeit``.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {label: [] for label in actions}
    end = time.perf_counter() + limit_s
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i >= least and time.perf_counter() > end:
                break
            for label in order.sample(list(actions), len(actions)):
                prepare()
                seconds[label].append(timed(actions[label], device, clock_of(device)))
    finally:
        gc.enable()
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, fastest and number of the rounds."""
    return {"ms": 1e3 * statistics.median(seconds), "min_ms": 1e3 * min(seconds), "rounds": len(seconds)}


def _stream(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> None:
    m.mul_(0.9).add_(g, alpha=0.1)
    v.mul_(0.99).add_(g, alpha=0.01)
    p.sub_(m + v, alpha=1e-3)


class Bandwidth:
    """An in-place kernel with 4 reads and 3 writes an element: what a step can reach at best on this machine."""

    def __init__(self, elements: int, device: str) -> None:
        self.arrays = [torch.ones(elements, device=device) for _ in range(4)]
        self.bytes = 7 * elements * self.arrays[0].itemsize
        self._kernel = torch.compile(_stream, dynamic=True, fullgraph=True)

    def __call__(self) -> None:
        with torch.no_grad():
            self._kernel(*self.arrays)


def peak_extra(action: Action, device: str) -> int:
    """The most bytes of tensors that an action holds beyond those that were there when it began."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def kernels() -> int:
    """Kernels that polyak's optimizers have compiled or loaded in this process."""
    from polyak.optim.engine import units

    return sum(map(len, units._compiled.values()))
