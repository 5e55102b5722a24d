"""Atomic checkpoints: written aside, listed in a manifest, synced, renamed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import committed, read_json, sha256, write_json

MANIFEST = "manifest.json"
WRITING = ".writing"
NAME = re.compile(r"step-(\d+)")


def commit(written: Path, folder: Path) -> None:
    """Makes the files in `written` appear as `folder`: the manifest last, all synced, one rename."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(written).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    with committed(folder) as temporary:
        for path in written.iterdir():
            os.rename(path, temporary / path.name)
        write_json(temporary / MANIFEST, manifest)


def step_of(folder: Path) -> int:
    """Returns the step after which a checkpoint was made."""
    found = NAME.fullmatch(folder.name)
    assert found is not None
    return int(found[1])


def checkpoints(root: Path) -> list[Path]:
    """Lists the committed folders in `root`, newest first, without checking them for damage."""
    found = [path for path in root.glob("step-*") if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def is_complete(folder: Path) -> bool:
    """Returns whether every file of the manifest is there as it was written."""
    try:
        manifest = read_json(folder / MANIFEST)
    except LuthierError:
        return False
    return isinstance(manifest, dict) and all(_as_written(folder / name, entry) for name, entry in manifest.items())


def _as_written(path: Path, entry: Any) -> bool:
    known = isinstance(entry, dict) and {"bytes", "sha256"} <= set(entry)
    return known and path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def newest(root: Path) -> Path | None:
    """Returns the newest checkpoint whose manifest verifies, or None."""
    return next((folder for folder in checkpoints(root) if is_complete(folder)), None)


def clean(root: Path, keep: int) -> None:
    """Removes what is incomplete, and all but the newest `keep` checkpoints."""
    for leftover in root.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for index, folder in enumerate(checkpoints(root)):
        if index >= keep or not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
