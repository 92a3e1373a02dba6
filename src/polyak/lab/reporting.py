"""What a train function calls to tell how far it is, and where it may leave files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from torch import Tensor

from polyak.lab.problem import Metrics


class Report:
    """The ``report`` of a run, which is called after a step; it is a context, whose end removes the run's folder.

    Args:
        take: is given what the run has come to.
    """

    def __init__(self, take: Callable[..., None]) -> None:
        self._take = take
        self._folder: Path | None = None

    def __call__(self, step: int, value: Metrics | None = None, *, loss: float | Tensor | None = None) -> None:
        """Tell the validation metric after a step, its training loss or both."""
        self._take(step, value, loss=loss)

    @property
    def folder(self) -> Path:
        """A folder that no other run has, for checkpoints and the like; it is gone when the run has ended."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="polyak-run-"))
        return self._folder

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
