"""Writing a file whole or not at all, and never over something that is not ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from polyak.lab.errors import BadInput, LabError


def check_free(path: Path, ours: Callable[[Path], bool], what: str) -> None:
    """Refuse a path that cannot be written or that holds something else, before hours are spent on what goes there.

    Args:
        path: where a file is to go.
        ours: whether an existing file may be replaced.
        what: what is to be written, for the message.
    """
    if path.is_dir():
        raise BadInput(f"the {what} {str(path)!r} is a folder; name a file")
    if not path.parent.is_dir():
        raise BadInput(f"there is no folder {str(path.parent)!r} for the {what}")
    if path.exists() and path.stat().st_size and not ours(path):
        raise BadInput(f"{str(path)!r} exists and is no {what} of polyak; name another file or delete it")


def write_whole(path: Path, write: Callable[[Path], None], what: str) -> None:
    """Write a file beside ``path`` and put it in its place.

    Args:
        path: where the file is to be.
        write: writes a file with the path that it is given.
        what: what is written, for the message.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise LabError(f"cannot write the {what} {str(path)!r}: {error.strerror}; all runs are kept") from error
