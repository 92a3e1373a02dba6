"""What is compiled, and the key by which its package is found again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

FORMAT = 1  # of the packages and their keys; raised when an older one must not be taken
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Array:
    """One tensor that a function takes: dense, detached, aligned to 16 bytes.

    Args:
        dtype: of its elements.
        shape: a number for a size that never varies, a name for one that does and is at least 2; the same name is the
            same size, in all tensors of a function. ``("n",)``, ``("rows", "columns")``, ``()``, ``(7,)``.
    """

    dtype: torch.dtype
    shape: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Source:
    """A function of tensors that is to be compiled.

    Args:
        name: some words for the progress line and the file's name: ``"adamw float32"``.
        function: of as many tensors as ``inputs`` names. It returns None, having written some of them with ``copy_``,
            or a tuple of tensors. It is traced with tensors that hold nothing, so it must not look at values.
        inputs: the tensors that it takes.
        device: where they are.
        identity: what the function is, if the caller can say so in words: two sources of equal identity, inputs,
            device, threads and settings share one package, and it is found without tracing anything. Polyak's own
            files are part of every key. None: the function is traced first (1 to 2 s, and torch's compiler is
            imported) and known by its graph.
        threads: ``"all"`` for loops that are shared by as many threads as ``torch.set_num_threads`` says when they
            run, ``"one"`` for code without any, where tensors are so small that waking threads costs more than the
            work. On CUDA they are the same.
        settings: pairs of an option of ``torch._inductor.config`` and its value, on top of those used for all.

    Raises:
        ValueError: ``threads`` or a size is not one of these.
    """

    name: str
    function: Callable[..., Any]
    inputs: tuple[Array, ...]
    device: torch.device
    identity: str | None = None
    threads: Literal["all", "one"] = "all"
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.threads not in ("all", "one"):
            raise ValueError(f"threads must be 'all' or 'one', got {self.threads!r}")
        for size in (size for array in self.inputs for size in array.shape):
            if not (size.isidentifier() if isinstance(size, str) else size >= 1):
                raise ValueError(f"inputs: a size is a number from 1 on or a name, got {size!r} in {self.name!r}")

    def key(self, graph: str | None = None) -> str:
        """32 hexadecimal digits that stand for everything a package depends on; ``graph`` takes identity's place."""
        facts = [
            FORMAT,
            ["identity", self.identity] if graph is None else ["graph", graph],
            [[str(array.dtype), array.shape] for array in self.inputs],
            [self.threads, sorted((option, repr(value)) for option, value in self.settings)],
            [torch.__version__, torch.version.git_version, sources_hash()],
            [str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()],
            [_accelerator(self.device), processor()],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", f"{self.name} {self.threads}")[:60]


def version() -> str:
    """The folder's name for packages of this torch and this polyak."""
    return f"torch{re.sub(r'[^A-Za-z0-9.]+', '_', torch.__version__)}-polyak{sources_hash()[:8]}"


@functools.cache
def sources_hash() -> str:
    """Of polyak's own files: a package never outlives the code that it was made of."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def processor() -> tuple[str, str, str]:
    """The CPU: packages are compiled for the instructions that it has."""
    return platform.machine(), torch.backends.cpu.get_cpu_capability(), _features()


def _features() -> str:
    """The instruction sets of the first CPU where the system lists them; "" elsewhere."""
    try:
        descriptor = os.open("/proc/cpuinfo", os.O_RDONLY)
    except OSError:
        return ""
    try:
        first = os.read(descriptor, 1 << 14).decode(errors="replace")  # what the kernel gives at once: a few CPUs
    finally:
        os.close(descriptor)
    match = re.search(r"^(?:flags|Features|features)\s*:\s*(.*)$", first, re.MULTILINE)
    return " ".join(sorted(match[1].split())) if match else ""


def _accelerator(device: torch.device) -> list[Any]:
    if device.type == "cuda":
        return ["cuda", *torch.cuda.get_device_capability(device)]
    return [device.type]
