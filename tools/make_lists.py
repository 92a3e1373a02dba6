"""Write the lists that the files of polyak.optim imply: the methods, and the public rules.

python tools/make_lists.py            # write src/polyak/optim/methods/__init__.py and src/polyak/optim/rules.py
python tools/make_lists.py --check    # fail if one is out of date
python tools/make_lists.py --package FOLDER    # of another copy of polyak/optim

A method is a class with a ``slug`` in the file of that name; a rule is a public function with ``@factory``, in methods/
or vocabulary/. The files are read, not run.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "polyak" / "optim"
MADE = "Made by tools/make_lists.py from the files; not edited by hand."
METHODS = f'"""The published methods, one a file. {MADE}"""\n'
RULES = f'"""The vocabulary: rules to chain. {MADE}"""\n'


def methods(package: Path) -> dict[str, str]:
    """The class of every method, by module."""
    found = {}
    for path in _files(package / "methods"):
        slugs = {
            node.name: ast.literal_eval(line.value)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef)
            for line in node.body
            if isinstance(line, ast.Assign) and [ast.unparse(t) for t in line.targets] == ["slug"]
        }
        if list(slugs.values()) != [path.stem]:
            raise ValueError(f"{path} must have one class with slug = {path.stem!r}, it has {slugs}")
        found[path.stem] = next(iter(slugs))
    return found


def rules(package: Path) -> dict[str, list[str]]:
    """The public rule factories, by module."""
    found = {}
    for folder in ("methods", "vocabulary"):
        for path in _files(package / folder):
            names = [
                node.name
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
                and any(ast.unparse(decorator) == "factory" for decorator in node.decorator_list)
            ]
            if names:
                found[f"{folder}.{path.stem}"] = sorted(names)
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_"))


def _module(head: str, imports: dict[str, list[str]]) -> str:
    lines = [f"from polyak.optim.{module} import {', '.join(names)}\n" for module, names in sorted(imports.items())]
    # in the order of ruff's RUF022: constants, then classes, then the rest
    exported = sorted(
        (name for names in imports.values() for name in names), key=lambda n: (not n.isupper(), n.islower(), n)
    )
    listed = "".join(f'    "{name}",\n' for name in exported)
    return f"{head}\n{''.join(lines)}\n__all__ = [\n{listed}]\n"


def lists(package: Path) -> dict[Path, str]:
    """The text of the files that are made."""
    by_module = {f"methods.{module}": [name] for module, name in methods(package).items()}
    return {
        package / "methods" / "__init__.py": _module(METHODS, by_module),
        package / "rules.py": _module(RULES, rules(package)),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the lists, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a list is out of date")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the folder of polyak/optim")
    args = parser.parse_args(argv)
    stale = [path for path, text in lists(args.package).items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path} is out of date: run python tools/make_lists.py", file=sys.stderr)
        else:
            path.write_text(lists(args.package)[path], encoding="utf-8")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
