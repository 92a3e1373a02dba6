"""Results one by one in a file of JSON lines: a run that was cut off goes on where it stood."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Store:
    """Rows under keys; a half-written last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            self.rows = [json.loads(line) for line in lines if line.endswith("\n")]
            if lines and not lines[-1].endswith("\n"):
                path.write_text("".join(lines[:-1]))
        path.parent.mkdir(parents=True, exist_ok=True)

    def find(self, **key: Any) -> list[Row]:
        """Rows that agree with all of ``key``."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, key: Row, values: Row) -> None:
        """Write a row through to the disk."""
        row = {**key, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
