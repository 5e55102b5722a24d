"""Paths that somebody wrote: `~` spelled out, and refused where no file system takes them."""

from __future__ import annotations

import os
from pathlib import Path

from luthier.core.errors import LuthierError
from luthier.core.guard import reason

SHOWN = 80
"""Characters of a refused name that are told."""


def path_of(name: str | os.PathLike[str], what: str = "cannot use the path") -> Path:
    """Returns the path of a name, whether something is there or not.

    Raises `LuthierError`, which opens with `what`, where nothing can be: with a part of 300 letters, a null, half a
    character, a link to itself, the `~` of nobody, or in a folder that is closed.
    """
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        raise LuthierError(f"{what} {str(name)[:SHOWN]!r}: {reason(error, bare=True)}.") from error
    return path
