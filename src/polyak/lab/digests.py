"""A digest of what code does: a file and all that it imports from its own folder or package, without the words in it.

Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path


def digest(path: Path, base: Path, package: str = "") -> str:
    """The digest of a file and of what it imports, directly or through others.

    Args:
        path: the file.
        base: the folder in which imported modules are looked for; what is not there does not count.
        package: only modules inside of this package count.
    """
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = None
            waiting += _neighbours(current, base, package)
    made = hashlib.sha256()
    for each in sorted(found):
        made.update(f"{_named(each, base)}\0{_parsed(each)[0]}\0".encode())
    return made.hexdigest()[:16]


def _named(path: Path, base: Path) -> str:
    """A name that does not depend on where the folder lies."""
    return str(path.relative_to(base)) if path.is_relative_to(base) else path.name


def _neighbours(path: Path, base: Path, package: str) -> Iterator[Path]:
    inside = path.relative_to(base).parts[:-1] if path.is_relative_to(base) else ()
    for level, name in _parsed(path)[1]:
        parts = [*inside[: len(inside) - level + 1], *name] if level else name
        if not parts or (package and (parts[0] != package or len(parts) == 1)):
            continue
        place = base.joinpath(*parts)
        yield from (each for each in (place.with_suffix(".py"), place / "__init__.py") if each.is_file())


Import = tuple[int, list[str]]  # the level of a relative one, the dotted name


@cache
def _parsed(path: Path) -> tuple[str, list[Import]]:
    """What a file means, and what it imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template, say, that nobody runs
        return hashlib.sha256(path.read_bytes()).hexdigest(), []
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module.split(".") if node.module else []
            imports.append((node.level, stem))
            imports += [(node.level, [*stem, alias.name]) for alias in node.names]
        _forget_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _forget_docstring(node: ast.AST) -> None:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
        node.body = node.body[1:]
