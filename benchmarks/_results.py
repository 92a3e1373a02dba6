"""The JSON of step_time.py and the table beside it, to which every run adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import _report
import _sets

from polyak import optim


class Results:
    """What was measured, by method and set: a run replaces the rows of its own methods and sets."""

    def __init__(self, path: Path, machine: dict[str, Any], options: dict[str, Any], anew: bool = False) -> None:
        self.path, self.options = path, options
        held = json.loads(path.read_text()) if path.exists() and not anew else {}
        if held and held["options"]["quick"] != options["quick"]:
            raise SystemExit(f"{path} holds {'miniature' if held['options']['quick'] else 'full'} sets: give --anew")
        self.machine = machine
        self.sets: dict[str, Any] = held.get("sets", {})
        self.rows: list[_report.Row] = held.get("rows", [])
        self.first_steps: dict[str, Any] = held.get("first_steps", {})

    def has(self, which: str, method: str) -> bool:
        """Whether a method was measured on a set."""
        return any((row["set"], row["method"]) == (which, method) for row in self.rows)

    def add(self, which: str, size: dict[str, int], rows: list[_report.Row]) -> None:
        """The rows of one method on one set, of one run."""
        self.sets[which] = size
        method = rows[0]["method"]
        self.rows = [row for row in self.rows if (row["set"], row["method"]) != (which, method)] + rows
        order = {name: i for i, name in enumerate(optim.names())}
        self.rows.sort(key=lambda row: (list(_sets.SHAPES).index(row["set"]), order.get(row["method"], len(order))))
        self._write([])

    def add_first_steps(self, method: str, found: dict[str, Any]) -> None:
        """A method's first steps."""
        self.first_steps[method] = found
        self._write([])

    def finish(self) -> list[str]:
        """Write all, the table too; the goals missed."""
        quick = self.options["quick"]
        missed = ["miniature sets: no goals"] if quick else _report.verdict(self.rows, self.first_steps)
        self._write(missed)
        lines = list(_report.table(self.rows, self.sets, _sets.TITLES))
        lines += [_report.first_step_line(method, found) for method, found in sorted(self.first_steps.items())]
        self.path.with_suffix(".txt").write_text("\n".join([*lines, *missed]) + "\n")
        return missed

    def _write(self, missed: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {"machine": self.machine, "options": self.options, "sets": self.sets, "rows": self.rows}
        text = {**found, "first_steps": self.first_steps, "verdict": missed}
        self.path.write_text(json.dumps(text, indent=1) + "\n")
