"""The folder of an edit, an unlearning or a meta-training: what it was begun with, and what is there from before."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import discard
from luthier.core.records import as_read, recorded, replace_json
from luthier.training.folder import versions


def begin(
    folder: Path, mark: str, here: Mapping[str, Any], what: str, overwrite: bool, leftovers: Iterable[Path]
) -> None:
    """Notes in the file `mark` what the folder is begun with, and removes `leftovers`; nothing where it goes on.

    `here` has the settings first, then what they were applied to, by name; `what` is a noun. Raises `LuthierError` for
    a folder that was begun with anything else (`out` aside) and is not to be overwritten.
    """
    read = as_read(here)
    if (folder / mark).is_file() and not overwrite:
        with recorded(folder / mark) as old:
            return _check_same(folder, read, old, what)
    for path in leftovers:
        discard(path)
        shutil.rmtree(path, ignore_errors=True)
        if path.is_file():
            path.unlink()
    replace_json(folder / mark, {**read, "versions": versions()})


def _check_same(folder: Path, here: Mapping[str, Any], old: Mapping[str, Any], what: str) -> None:
    settings, *others = here
    differing = [key for key in here[settings] if key != "out" and here[settings][key] != old[settings].get(key)]
    differing = differing or [f"the {name}" for name in others if here[name] != old[name]]
    if differing:
        raise LuthierError(
            f"{folder} holds another {what} ({', '.join(differing)} differ); give what it was started with."
        )
