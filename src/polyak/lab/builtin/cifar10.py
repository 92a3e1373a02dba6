"""CIFAR-10 from the files that its authors give, in their Python or their binary format: ``cifar10:path/to/folder``.

Of the 50,000 pictures for training 1,000 (of fewer: a tenth) are set aside for validation, the same always; the test
split is ``test_batch``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from polyak.lab.builtin.common import Rows, divide
from polyak.lab.builtin.pictures import SIDE, on_pictures
from polyak.lab.errors import BadInput
from polyak.lab.problems import Problem

TRAINING = [f"data_batch_{number}" for number in range(1, 6)]
PIXELS = 3 * SIDE * SIDE
FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")  # as the archives unpack


def cifar10(path: Path) -> Problem:
    """The user's copy of CIFAR-10.

    Raises:
        BadInput: if a file is missing or is not what the format says.
    """
    suffix, read = _format(path)
    batches = {name: _checked(path / (name + suffix), read) for name in [*TRAINING, "test_batch"]}
    test = batches.pop("test_batch")
    pictures, labels = (torch.cat(parts) for parts in zip(*batches.values(), strict=True))
    held_out = min(1000, len(labels) // 10)
    data = divide((pictures, labels), {"train": len(labels) - held_out, "validation": held_out})
    text = f"A convolutional net of 114 thousand parameters on {len(labels) - held_out:,} pictures of CIFAR-10."
    return on_pictures("cifar10", path, {**data, "test": test}, text)


def _format(folder: Path) -> tuple[str, Callable[[Path], Rows]]:
    """The suffix of the files and how they are read."""
    formats: dict[str, Callable[[Path], Rows]] = {"": _pickled, ".bin": _binary}
    for suffix, read in formats.items():
        names = [name + suffix for name in [*TRAINING, "test_batch"]]
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return suffix, read
        if len(missing) < len(names):
            raise BadInput(f"cifar10: {str(folder)!r} lacks {', '.join(missing)}")
    inside = [str(folder / name) for name in FOLDERS if (folder / name).is_dir()]
    hint = f"; did you mean cifar10:{inside[0]}?" if inside else ""
    raise BadInput(f"cifar10 needs the folder of data_batch_1 (or data_batch_1.bin); {str(folder)!r} is not it{hint}")


def _checked(path: Path, read: Callable[[Path], Rows]) -> Rows:
    try:
        pictures, labels = read(path)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"cifar10: {str(path)!r} is no batch of CIFAR-10: {reason}") from error
    if len(labels) == 0:
        raise BadInput(f"cifar10: {str(path)!r} is empty")
    if not 0 <= int(labels.min()) <= int(labels.max()) < 10:
        wrong = next(int(label) for label in labels if not 0 <= label < 10)
        raise BadInput(f"cifar10: labels must be from 0 to 9, but {str(path)!r} has {wrong}")
    return pictures.reshape(-1, 3, SIDE, SIDE), labels


def _binary(path: Path) -> Rows:
    raw = bytearray(path.read_bytes())
    if len(raw) % (1 + PIXELS):
        raise ValueError(f"{len(raw)} bytes are not whole records of {1 + PIXELS}")
    if not raw:
        return torch.empty(0, PIXELS, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    records = torch.frombuffer(raw, dtype=torch.uint8).view(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].long()


class _Arrays(pickle.Unpickler):
    """Reads arrays, texts and numbers, and refuses what else a pickle can ask for: that may be any code."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): numpy.ndarray,
            ("numpy", "dtype"): numpy.dtype,
            ("_codecs", "encode"): super().find_class("_codecs", "encode"),  # bytes, where Python 3 wrote them for 2
        }
        reconstruct = numpy.empty(0).__reduce__()[0]  # the module's name has changed with NumPy 2
        known |= {(f"numpy.{core}.multiarray", "_reconstruct"): reconstruct for core in ("core", "_core")}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def _pickled(path: Path) -> Rows:
    with path.open("rb") as file:
        content = _Arrays(file, encoding="bytes").load()
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__} instead of dict")
    entries = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    missing = [name for name in ("data", "labels") if name not in entries]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    pictures = numpy.asarray(entries["data"])
    if pictures.dtype != numpy.uint8 or pictures.shape != (len(entries["labels"]), PIXELS):
        wanted = f"{len(entries['labels'])} x {PIXELS} bytes"
        raise ValueError(f"data must be {wanted}, got {pictures.dtype} of shape {pictures.shape}")
    labels: Tensor = torch.tensor(entries["labels"], dtype=torch.int64)
    return torch.from_numpy(pictures.copy()), labels
