"""Pictures in one folder for each class, read by Pillow: ``imagefolder:path/to/folder``.

The files of a class are sorted by name, shuffled the same way always, and cut into 3 parts for training, one for
validation and one for the test. Pictures are cropped to a square and made 32 x 32 pixels; of large folders a part is
read, of each class alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyak.lab.builtin.common import Rows
from polyak.lab.builtin.pictures import SIDE, on_pictures
from polyak.lab.errors import BadInput, require
from polyak.lab.problems import Problem

KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
READ_AT_MOST = 5000
LEAST = 5  # pictures of a class

Chosen = list[dict[str, list[Path]]]  # the files of each split, for each class


def image_folder(path: Path) -> Problem:
    """The user's pictures.

    Raises:
        BadInput: if there are no two classes, a class is too small, or a picture cannot be read.
    """
    chosen = _chosen(path)
    data = {split: _read(chosen, split) for split in ("train", "validation", "test")}
    count = sum(len(labels) for _, labels in data.values())
    text = f"A convolutional net on {count:,} pictures of {len(chosen)} classes from the folder {path.name}."
    return on_pictures("imagefolder", path, data, text)


def _chosen(folder: Path) -> Chosen:
    if not folder.is_dir():
        raise BadInput(f"imagefolder needs a folder, but {str(folder)!r} is a file")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        found = f"only {classes[0].name!r}" if classes else "none"
        raise BadInput(f"imagefolder needs a folder for each of at least two classes; {str(folder)!r} has {found}")
    most = max(LEAST, READ_AT_MOST // len(classes))
    return [_parts(entry, most) for entry in classes]


def _parts(folder: Path, most: int) -> dict[str, list[Path]]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS and not file.name.startswith("."))
    if len(files) < LEAST:
        folders = any(entry.is_dir() for entry in folder.iterdir())
        hint = f"; if its folders are the classes, name imagefolder:{folder}" if folders else ""
        raise BadInput(
            f"imagefolder needs at least {LEAST} pictures ({', '.join(sorted(KINDS))}) of each class; "
            f"{str(folder)!r} has {len(files)}{hint}"
        )
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()[:most]
    fifth = len(order) // 5
    cuts = {"validation": order[:fifth], "test": order[fifth : 2 * fifth], "train": order[2 * fifth :]}
    return {split: [files[row] for row in rows] for split, rows in cuts.items()}


def _read(chosen: Chosen, split: str) -> Rows:
    labels = torch.tensor([label for label, files in enumerate(chosen) for _ in files[split]])
    return torch.stack([_picture(file) for files in chosen for file in files[split]]), labels


def _picture(file: Path) -> Tensor:
    image, ops = require("PIL.Image"), require("PIL.ImageOps")
    try:
        with image.open(file) as opened:
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded small, in a tenth of the time
            upright: Any = ops.exif_transpose(opened)
            if upright.mode[0] in "IF":  # Pillow would cut them off at 255
                raise ValueError(f"its pixels are of mode {upright.mode!r}, not bytes")
            small = ops.fit(upright.convert("RGB"), (SIDE, SIDE))
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise BadInput(f"imagefolder cannot read the picture {str(file)!r}: {error}") from error
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1)
