"""Imports inside polyak only point down: a room knows those on lower floors and none beside it or above."""

import ast
import warnings
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FLOORS = {
    **dict.fromkeys(("aot", "declare", "memory"), 0),
    **dict.fromkeys(("optim", "nn", "teachers", "sampling", "decoding", "rl"), 1),
    **dict.fromkeys(("local", "federated", "distributed", "testing"), 2),
    "lab": 3,
    "cli": 4,
    "__main__": 5,
}
SOFT_LIMIT, HARD_LIMIT = 300, 350

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.glob("polyak/**/*.py"))


def module_of(path: Path) -> list[str]:
    """The dotted name of a file, as a list; a package's __init__ keeps that last part."""
    return list(path.relative_to(SRC).with_suffix("").parts)


def imported(source: str, module: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line and dotted target of every import, wherever in the file it stands, relative ones resolved.

    Rooms load on first use, so an attribute ``polyak.<room>`` counts as an import of that room.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, [*base, *(node.module.split(".") if node.module else []), alias.name]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in FLOORS:
            yield node.lineno, [node.value.id, node.attr]


def violations(source: str, module: list[str]) -> list[str]:
    room = module[1]
    found = []
    for line, target in imported(source, module):
        if target[0] != "polyak" or target[1:2] == [room]:
            continue
        name = ".".join(target)
        if len(target) == 1 or target[1] in {"__version__", "__path__"}:  # the root itself: its version, its path
            if room == "memory":
                found.append(f"line {line}: memory imports nothing of polyak, not even {name}")
        elif target[1] not in FLOORS:
            found.append(f"line {line}: {name} is in no known room; give it a floor in this test")
        elif FLOORS[target[1]] >= FLOORS[room]:
            found.append(f"line {line}: {room} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[target[1]]})")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path):
    module = module_of(path)
    if module == ["polyak", "__init__"]:
        return  # names the rooms, and loads them on first use; test_import.py holds it to that
    assert module[1] in FLOORS, f"{path.name} is in no known room; give it a floor in this test"
    assert violations(path.read_text(), module) == []


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("import torch\nfrom . import ema\nfrom ..memory.ema import ema", "polyak.memory.averages", 0),
        ("from polyak.memory import ema\nfrom ..memory import ema\nfrom .rules import adam", "polyak.optim.adam", 0),
        ("from polyak import __version__, memory\nimport polyak.optim.adam as a", "polyak.lab.run", 0),
        ("from polyak.optim import create", "polyak.testing", 0),
        ("from polyak import optim", "polyak.memory.averages", 1),
        ("from polyak import __version__", "polyak.memory.averages", 1),
        ("def f():\n    from ..teachers import ema", "polyak.optim.adam", 1),
        ("from .. import lab", "polyak.optim.__init__", 1),
        ("from ... import lab", "polyak.optim.rules.adam", 1),
        ("import polyak\nprint(polyak.__version__, polyak.optim)", "polyak.lab.run", 0),
        ("import polyak\npolyak.lab.run()", "polyak.optim.adam", 1),
        ("import polyak", "polyak.memory.averages", 1),
        ("from polyak.attic import thing", "polyak.cli", 1),
        ("from polyak.local import block", "polyak.testing", 1),
    ],
)
def test_the_check_itself(source, module, count):
    assert len(violations(source, module.split("."))) == count


def circle(sources: dict[str, str], package: list[str]) -> list[str]:
    """The modules of a package that import each other in a circle, for annotations too; empty if none do."""
    depth, graph = len(package), {}
    for name, source in sources.items():
        targets = {t[depth] for _, t in imported(source, [*package, name]) if t[:depth] == package and len(t) > depth}
        graph[name] = targets & set(sources)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_engine_has_no_circle():
    package = ["polyak", "optim", "engine"]
    sources = {
        path.stem: path.read_text() for path in (SRC / "/".join(package)).glob("*.py") if path.stem != "__init__"
    }
    assert len(sources) > 10
    assert circle(sources, package) == []


@pytest.mark.parametrize(
    ("source", "members"),
    [
        ("import torch\nfrom a.q import b", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.p.b import thing", {"b", "c"}),
        ("def f():\n    from . import b", {"b", "c"}),
        ("import a.p.b", {"b", "c"}),
    ],
)
def test_the_search_for_circles_itself(source, members):
    assert set(circle({"b": "from a.p import c", "c": source, "d": "from a.p import b, c"}, ["a", "p"])) == members


def test_files_stay_short():
    lengths = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in FILES}
    long = {name: lines for name, lines in lengths.items() if lines > SOFT_LIMIT}
    if long:
        warnings.warn(f"over {SOFT_LIMIT} lines: {long}", stacklevel=1)
    assert max(lengths.values()) <= HARD_LIMIT, {name: lines for name, lines in long.items() if lines > HARD_LIMIT}
