"""All runs as a table, for other tools: CSV, JSON, Parquet, and TensorBoard's event files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from polyak.lab.errors import BadInput, require
from polyak.lab.spec import Record
from polyak.lab.writing import check_free, write_whole

EXTRA = "export"
RUN = ("key", "problem", "method", "seed", "split", "steps", "status", "metric")
DETAIL = ("reason", "step", "target_step", "parameters", "state_bytes")
TIMES = ("step_ms", "optimizer_ms", "compile_seconds", "target_seconds")


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One flat row a run; hyperparameters are ``setting.lr`` and so on, ``None`` where a method has none."""
    some = [record for record in records if record.status != "running"]
    names = sorted({name for record in some for name in record.setting})
    return [
        {
            **{name: getattr(record, name) for name in RUN},
            **{name: record.detail.get(name) for name in DETAIL},
            **{name: record.detail.get("timing", {}).get(name) for name in TIMES},
            **{f"setting.{name}": _plain(record.setting.get(name)) for name in names},
            **{f"version.{name}": version for name, version in record.versions.items()},
        }
        for record in some
    ]


def _plain(value: Any) -> Any:
    """Tables have no tuples."""
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def export(records: Iterable[Record], path: Path) -> None:
    """Write all runs to a file, in the form that its name asks for.

    Args:
        records: the runs.
        path: ends in ``.csv``, ``.json``, ``.parquet``, or in ``.tensorboard``, which becomes a folder of event files
            with the curves of every run.
    """
    if path.suffix == ".tensorboard":
        _tensorboard(list(records), path)
        return
    if path.suffix not in WRITERS:
        raise BadInput(
            f"cannot export to {path.name!r}: name it {', '.join(f'*{s}' for s in (*WRITERS, '.tensorboard'))}"
        )
    check_free(path, lambda existing: False, "export")
    made = list(records)
    write_whole(path, lambda temporary: WRITERS[path.suffix](made, temporary), "export")


def write_csv(records: Iterable[Record], file: TextIO) -> None:
    """Write all runs to an open file, with a line of headings."""
    made = rows(records)
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in made for name in row)))
    writer.writeheader()
    writer.writerows(made)


def _csv(records: list[Record], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        write_csv(records, file)


def _json(records: list[Record], path: Path) -> None:
    """The rows, with the curves of each run."""
    curves = {record.key: {name: record.detail.get(name, []) for name in ("train", "validation")} for record in records}
    path.write_text(json.dumps([{**row, **curves[row["key"]]} for row in rows(records)], indent=1), encoding="utf-8")


def _parquet(records: list[Record], path: Path) -> None:
    require("pyarrow", EXTRA)
    frame(records).to_parquet(path)


def frame(records: Iterable[Record]) -> Any:
    """The rows as a pandas DataFrame."""
    made = require("pandas").DataFrame(rows(records))
    for name in made.columns:  # one method's number may be another's word
        if made[name].map(type).nunique() > 1 and made[name].map(lambda value: isinstance(value, str)).any():
            made[name] = made[name].map(lambda value: value if value is None else str(value))
    return made


def _tensorboard(records: list[Record], path: Path) -> None:
    require("tensorboard", EXTRA)
    from torch.utils.tensorboard.writer import SummaryWriter

    if path.exists():
        raise BadInput(f"{str(path)!r} exists; name another folder or delete it")
    for record in records:
        if record.status == "running":
            continue
        name = f"{record.problem}/{record.method}/{record.split}-{record.seed}-{record.key[:8]}".replace(":", "_")
        with SummaryWriter(str(path / name)) as writer:
            writer.add_text("setting", json.dumps(record.setting))
            for curve in ("train", "validation"):
                for step, value in record.detail.get(curve, []):
                    if value is not None:
                        writer.add_scalar(curve, value, step)
            if record.metric is not None:
                writer.add_scalar(record.split, record.metric, record.steps)


WRITERS: dict[str, Callable[[list[Record], Path], None]] = {".csv": _csv, ".json": _json, ".parquet": _parquet}
