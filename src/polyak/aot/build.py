"""From a function to a package: torch.export, then AOTInductor."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyak.aot.source import Array, Source

ELEMENTS = 1 << 16  # of an example, about: enough that loops are shared by threads
THREADS = 8  # for which loops are laid out; how many there are they ask as they run


class _Module(torch.nn.Module):
    """What torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def missing_compiler() -> str | None:
    """Why nothing can be compiled on this machine, known without importing torch's compiler."""
    config: Any = sys.modules.get("torch._inductor.config")
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    cxx = os.environ.get("CXX", default) if config is None else config.cpp.cxx
    choices = [choice for choice in (cxx if isinstance(cxx, (tuple, list)) else (cxx,)) if choice]
    if any(shutil.which(choice) for choice in choices):
        return None
    return f"there is no C++ compiler ({' or '.join(choices)}; set CXX to one)"


def trace(source: Source) -> torch.export.ExportedProgram:
    """The function's graph, for all sizes."""
    sizes = _sizes(source.inputs)
    dims = {name: torch.export.Dim(name, min=2) for name in sizes}
    examples = tuple(_example(array, sizes, source.device) for array in source.inputs)
    shapes = tuple({i: dims[s] for i, s in enumerate(a.shape) if isinstance(s, str)} for a in source.inputs)
    with torch.no_grad(), _quiet():
        return torch.export.export(_Module(source.function), examples, dynamic_shapes=(shapes,), strict=False)


def text(program: torch.export.ExportedProgram) -> str:
    """All that a graph does: its code, that of its inner graphs, and what tensors it holds."""
    parts = [m.code for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    held = {**program.state_dict, **program.constants}
    for name, value in sorted(held.items()):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a compiled function may hold tensors, and this one holds {name}, a {type(value).__name__}"
            )
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        parts.append(f"{name} {value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}")
    return "\n".join(parts)


def build(
    source: Source,
    program: torch.export.ExportedProgram | None,
    target: Path,
    *,
    many: bool = False,
    trusting: bool = True,
) -> None:
    """Compile a source, traced already or not, into a new file.

    Args:
        source: what is compiled.
        program: its graph, if it is traced already.
        target: the file, whose name ends in ``.pt2``.
        many: it is one of many, so headers are compiled for all of them first (16 s, then each takes 4 s less).
        trusting: take it that the C++ compiler knows the CPU's instructions, which torch else tries out for 16 s.

    Raises:
        UnsafeCompiler: if what the compiler makes would end the process that loads it.
    """
    from torch._inductor import aoti_compile_and_package

    program = program or trace(source)
    with _quiet():
        aoti_compile_and_package(
            program, package_path=str(target), inductor_configs=_options(source, many=many, trusting=trusting)
        )
    if has_own_runtime(target):
        raise UnsafeCompiler(
            "the C++ compiler puts a C++ library of its own into what it makes, which crashes beside torch's: "
            "set CXX to another"
        )


class UnsafeCompiler(RuntimeError):
    """What a compiler makes must not be loaded."""


def has_own_runtime(package: Path) -> bool:
    """Whether a package's code needs no C++ library, as it was linked with one.

    Two C++ libraries in one process mix up each other's locales, and torch's loader, which uses them, crashes.
    """
    if sys.platform != "linux":
        return False
    with zipfile.ZipFile(package) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    return any(b"libstdc++.so" not in code and b"libc++.so" not in code for code in libraries)


def _options(source: Source, *, many: bool, trusting: bool) -> dict[str, Any]:
    """Of torch._inductor.config; those that this torch does not know are left out, as they only save time."""
    wanted: dict[str, Any] = {
        "cpp.vec_isa_ok": True if trusting else None,
        "aot_inductor.precompile_headers": many,
        "aot_inductor.compile_wrapper_opt_level": "O1",  # O0 compiles 1 s faster, and every call costs 3 us more
        "aot_inductor.enable_line_tables": False,
    }
    if source.device.type == "cpu":
        wanted["compile_threads"] = 1  # no pool of processes for what g++ does
    if source.threads == "one":
        wanted["cpp.threads"] = 1
    else:
        wanted |= {"cpp.threads": THREADS, "cpp.dynamic_threads": True}
    from torch._inductor import list_options

    known = set(list_options())
    return {option: value for option, value in wanted.items() if option in known} | dict(source.settings)


def _sizes(inputs: tuple[Array, ...]) -> dict[str, int]:
    """Example sizes, all different, so that none is taken for another."""
    names = list(dict.fromkeys(size for array in inputs for size in array.shape if isinstance(size, str)))
    most = max((sum(isinstance(size, str) for size in array.shape) for array in inputs), default=1)
    side = round(ELEMENTS ** (1 / max(most, 1)))
    return {name: side + 16 * i for i, name in enumerate(names)}


def _example(array: Array, sizes: dict[str, int], device: torch.device) -> Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in array.shape]
    return torch.zeros(shape, dtype=array.dtype, device=device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's notices about its own interfaces are not the user's concern."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        yield
