"""What code computes, as a digest that comments, docstrings, whitespace and words do not change."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

import polyak

WORDS = {"name", "description", "target"}  # of a Problem: what is said about it, not what it computes
INSTALLED = {"site-packages", "dist-packages"}


def digest(files: Iterable[tuple[str, bytes]], *also: str, split: str = "test") -> str:
    """The digest of source files, each under a name, and of some texts.

    Of code under ``if split == "test"`` and ``if split == "validation"`` only what is run for ``split`` counts, for
    ``"test"`` all of it, since tuning goes before it.
    """
    content = hashlib.sha256("\0".join(also).encode())
    for name, source in sorted(files):
        content.update(f"\0{name}\0{ast.dump(_Plain(split).visit(_parsed(source)), annotate_fields=False)}".encode())
    return content.hexdigest()


def _parsed(source: bytes) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # nobody has imported it yet; whoever does will hear of it
        return ast.Module([ast.Expr(ast.Set([ast.Constant(source)]))], [])


class _Plain(ast.NodeTransformer):
    """Leaves what decides the figures of runs that are judged on one split."""

    def __init__(self, split: str) -> None:
        self._validation_only = split == "validation"

    def visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:]  # the docstring
        found = super().visit(node)
        assert isinstance(found, ast.AST)
        return found

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called == "Problem":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in WORDS]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        taken = self._taken(node.test)
        if taken is not None:
            kept = node.body if taken else node.orelse
            node = ast.If(ast.Constant(True), kept, [])
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        taken = self._taken(node.test)
        if taken is None:
            return self.generic_visit(node)
        kept = self.visit(node.body if taken else node.orelse)
        return kept

    def _taken(self, test: ast.expr) -> bool | None:
        """Whether a branch on the name ``split`` is taken when that is "validation"; None where it is no such one."""
        if not (self._validation_only and isinstance(test, ast.Compare) and len(test.ops) == 1):
            return None
        left, right, operator = test.left, test.comparators[0], test.ops[0]
        if not (isinstance(left, ast.Name) and left.id == "split" and isinstance(right, ast.Constant)):
            return None
        if right.value not in ("test", "validation") or not isinstance(operator, (ast.Eq, ast.NotEq)):
            return None
        return (right.value == "validation") == isinstance(operator, ast.Eq)


def files_of(path: Path, source: bytes, folder: Path | None = None, package: str = "") -> list[tuple[str, bytes]]:
    """A file, under no name, and its :func:`neighbours`, as :func:`digest` takes them."""
    beside = neighbours(path, source, folder, package)
    return [("", source), *((name, place.read_bytes()) for name, place in beside.items())]


def files_of_module(module: types.ModuleType) -> list[tuple[str, bytes]]:
    """The same of the file of a module that has been imported."""
    path = Path(str(module.__file__))
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    return files_of(path, path.read_bytes(), path.parents[depth], module.__package__ or "")


def neighbours(path: Path, source: bytes, folder: Path | None = None, package: str = "") -> dict[str, Path]:
    """The modules of the user's own that a file imports, wherever in its code, and those that they import; by name.

    Args:
        path: the file.
        source: what is in it.
        folder: where modules are looked for first, by default the file's own. Whatever lies under it counts, of other
            places what :func:`is_own`.
        package: the package that the file is in.
    """
    folder = (path.parent if folder is None else folder).resolve()
    roots = [folder, *(Path(entry or ".").resolve() for entry in sys.path), Path(polyak.__path__[0]).parent]
    found: dict[str, Path] = {}
    waiting = list(_imported(source, package.split(".") if package else []))
    asked: set[str] = set()
    while waiting:
        name = waiting.pop()
        place = None if name in asked else _place(name, roots, folder)
        asked.add(name)
        if place is None or place == path.resolve():
            continue
        found[name] = place
        around = name.split(".") if place.name == "__init__.py" else name.split(".")[:-1]
        waiting += _imported(place.read_bytes(), around)
    return found


def _imported(source: bytes, package: list[str]) -> Iterator[str]:
    """The dotted names that may be modules in the imports of a source, with all packages around them."""
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        else:
            continue
        for target in filter(None, targets):
            parts = target.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def is_own(place: Path) -> bool:
    """Whether code is the user's own: nothing that is installed, and no part of Python, torch or polyak."""
    return not INSTALLED.intersection(place.parts) and not any(map(place.is_relative_to, _others()))


def _counts(place: Path, folder: Path) -> bool:
    """Whether a file is the user's own, or belongs to what lies under a folder, which may itself be installed."""
    if not place.is_relative_to(folder) or INSTALLED.intersection(place.relative_to(folder).parts):
        return is_own(place)
    return not any(place.is_relative_to(other) and not folder.is_relative_to(other) for other in _others())


@lru_cache
def _others() -> tuple[Path, ...]:
    """Where code lies whose versions are known: of Python, and of torch and polyak, wherever they were built."""
    python = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    return tuple(Path(place).resolve() for place in (*python, *torch.__path__, *polyak.__path__))


def _place(name: str, roots: list[Path], folder: Path) -> Path | None:
    """Where the code of a module is, if that is the user's own."""
    for root in [*roots, *_found_otherwise(name)]:
        stem = root.joinpath(*name.split("."))
        for place in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if place.is_file():
                return place if _counts(place, folder) else None
    return None


def _found_otherwise(name: str) -> Iterator[Path]:
    """The folder of a module that is found by other means than the path, as some are that were installed to be edited.

    What it is in is imported by nobody here: it is asked for the module or package at the top alone.
    """
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec is not None and spec.has_location and spec.origin is not None:
            place = Path(spec.origin).resolve()
            yield place.parents[1] if spec.submodule_search_locations else place.parent
