"""A convolutional net on colour pictures of 32 x 32 pixels that the user has: what cifar10 and imagefolder share."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from polyak.lab.builtin.common import CLASSES, Data, on_rows
from polyak.lab.errors import BadInput
from polyak.lab.problems import Problem

SIDE = 32
BATCH, STEPS = 64, 300
LEAST = 40  # pictures for training


class _Pixels(nn.Module):
    """Bytes become numbers from -1 to 1 here and not before: so the data need a quarter of the memory."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float() / 127.5 - 1


def _convolutional(classes: int) -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    convolutions = [*layer(3, 32), *layer(32, 64), *layer(64, 128)]
    return nn.Sequential(_Pixels(), *convolutions, nn.Flatten(), nn.Linear(128 * (SIDE // 8) ** 2, classes))


def on_pictures(kind: str, path: Path, data: Data, description: str) -> Problem:
    """The problem of telling the classes of pictures (bytes, n x 3 x 32 x 32) apart.

    Raises:
        BadInput: if there are too few pictures for training, or no two classes.
    """
    _, labels = data["train"]
    if len(labels) < LEAST:
        raise BadInput(f"{kind} needs at least {LEAST} pictures for training; {str(path)!r} gives {len(labels)}")
    if len(labels.unique()) < 2:
        raise BadInput(
            f"{kind} needs at least two classes; all pictures of {str(path)!r} are of class {int(labels[0])}"
        )
    classes = 1 + max(int(labels.max()) for _, labels in data.values())
    return on_rows(
        f"{kind}:{path.name}",
        data,
        CLASSES,
        lambda: _convolutional(classes),
        batch=min(BATCH, len(labels)),
        steps=STEPS,
        target=None,
        description=description,
    )
