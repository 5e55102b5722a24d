"""Atomic checkpoints: written aside, listed in a manifest, synced, renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import committed, sha256
from luthier.core.records import read_json, write_json

MANIFEST, STATE = "manifest.json", "trainer_state.json"
WRITING = ".writing"
NAME = re.compile(r"step-(\d+)")
LEFT = re.compile(r"\.writing|\.step-\d+\.(old|new-[0-9a-f]{8})")
"""What killed processes leave beside checkpoints."""
NEEDED = ("adapter.safetensors", "optimizer.pt", "scheduler.pt", STATE)
RANDOM = re.compile(r"rng_state(_\d+)?\.pth")
"""The random state, one file a process."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, by what it says of itself."""

    folder: Path
    step: int
    run: str | None
    """The id of its run; None for one of Luthier 0.1, which had none."""


def commit(written: Path, folder: Path, run: str, step: int) -> None:
    """Makes the files in `written` appear as `folder`: the manifest last, all synced, one rename."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    listed = {
        path.relative_to(written).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    with committed(folder) as temporary:
        for path in written.iterdir():
            os.rename(path, temporary / path.name)
        write_json(temporary / MANIFEST, {"run": run, "step": step, "files": listed})


def checkpoints(root: Path) -> list[Path]:
    """Lists the committed folders in `root`, newest first by what they say, without checking them for damage."""
    found = [path for path in root.glob("step-*") if NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=_said, reverse=True)


def _said(folder: Path) -> int:
    """Returns the step after which a checkpoint was made, -1 where it does not say: its name is not believed."""
    try:
        step = read_json(folder / STATE)["global_step"]
    except (LuthierError, KeyError, TypeError):
        return -1
    return step if type(step) is int else -1


def read(folder: Path) -> Checkpoint | None:
    """Reads a checkpoint of which every file that it needs is there as it was written; None otherwise."""
    try:
        manifest, step = read_json(folder / MANIFEST), _said(folder)
    except LuthierError:
        return None
    if not isinstance(manifest, dict):
        return None
    named = "files" in manifest  # else it is of Luthier 0.1, and the files are all that it holds
    files = manifest["files"] if named else manifest
    run = manifest.get("run") if named else None
    if not (isinstance(files, dict) and step >= 0 and (not named or (manifest.get("step") == step and _is_id(run)))):
        return None
    complete = set(NEEDED) <= set(files) and any(RANDOM.fullmatch(name) for name in files)
    if not complete or not all(_as_written(folder, name, entry) for name, entry in files.items()):
        return None
    return Checkpoint(folder, step, run)


def _is_id(run: Any) -> bool:
    return isinstance(run, str) and bool(run)


def _as_written(folder: Path, name: str, entry: Any) -> bool:
    inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    if not (inside and isinstance(entry, dict) and {"bytes", "sha256"} <= set(entry)):
        return False
    path = folder / name
    return path.is_file() and path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"]


def newest(root: Path, runs: Collection[str | None] | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint whose manifest verifies, or None; raises if it is of none of these `runs` (ids)."""
    found = next((each for folder in checkpoints(root) if (each := read(folder)) is not None), None)
    if found is not None and runs is not None and found.run not in runs:
        whose = f"the run {found.run}" if found.run else "a run without an id"
        wanted = next(iter(runs))
        raise LuthierError(
            f"{found.folder} is a checkpoint of {whose}, and this folder holds the run {wanted}; it is not gone on "
            "from. Remove it, or start anew (overwrite)."
        )
    return found


def go_on(run: Path) -> str:
    """Returns how a run in this folder is gone on with that could not write something."""
    if any_there(run / "checkpoints"):
        return "The run goes on from its last checkpoint (resume)."
    return "It had made no checkpoint, and starts again from its beginning (resume)."


def any_there(root: Path) -> bool:
    """Returns whether a checkpoint was committed in `root`, without checking it for damage."""
    return any((folder / MANIFEST).is_file() for folder in checkpoints(root))


def clean(root: Path, keep: int) -> None:
    """Removes what is incomplete, and all but the newest `keep` checkpoints; what is none of a run's stays."""
    for leftover in [path for path in root.glob(".*") if LEFT.fullmatch(path.name)]:
        shutil.rmtree(leftover, ignore_errors=True)
    for index, folder in enumerate(checkpoints(root)):
        if index >= keep or not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
