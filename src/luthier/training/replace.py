"""A run takes another's place in its folder: at every moment it holds the old one or the new one, and what is neither's
stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.core.files import recover
from luthier.core.storage.format import SPEC as ADAPTER_SPEC
from luthier.core.storage.store import OWN as ADAPTER_FILES
from luthier.training.checkpoint import LEFT, NAME

ADAPTER, CHECKPOINTS = "adapter", "checkpoints"
WRITTEN = (
    *(CHECKPOINTS, ADAPTER, "metrics.jsonl", "loss.png", "README.md"),
    *("routing.csv", "routing.png", "rollouts.jsonl", "rollouts.md", "frozen"),
)
"""What a run writes into its folder, beside its record."""
ASIDE, BESIDE = ".replaced-", ".adapter.beside"
UNKNOWN = "unknown"
"""Stands for the id of a run whose record is damaged."""


@contextmanager
def replaced(folder: Path, old: str | None) -> Iterator[None]:
    """The block writes the new run's record, which is what counts: before it, the old run is put back after a kill
    (`finish_replacing`), behind it, the rest of that goes."""
    aside = folder / f"{ASIDE}{old or UNKNOWN}"
    recover(folder / ADAPTER)  # where a kill left it aside
    there = [folder / name for name in WRITTEN if os.path.lexists(folder / name)]
    if there:
        aside.mkdir()
    for path in there:
        os.rename(path, aside / path.name)
    yield
    if there:
        _drop(aside, folder)


def finish_replacing(folder: Path, now: str | None) -> None:
    """After a kill: puts the old run back where its record still stands, finishes its removal where it does not."""
    for aside in folder.glob(f"{ASIDE}*"):
        if aside.name == f"{ASIDE}{now or UNKNOWN}":
            for path in aside.iterdir():
                os.rename(path, folder / path.name)
            aside.rmdir()
        else:
            _drop(aside, folder)
    _back(folder / BESIDE, folder / ADAPTER)


def _drop(aside: Path, folder: Path) -> None:
    """Removes what an old run wrote; what others put into its folders goes back there."""
    for name in (ADAPTER, CHECKPOINTS):
        inner = aside / name
        if inner.is_dir() and not inner.is_symlink():
            for path in [each for each in inner.iterdir() if not _ours(name, each.name)]:
                (folder / name).mkdir(exist_ok=True)
                os.rename(path, folder / name / path.name)
    shutil.rmtree(aside)


def _ours(part: str, name: str) -> bool:
    if part == ADAPTER:
        return name in ADAPTER_FILES
    return bool(NAME.fullmatch(name) or LEFT.fullmatch(name))


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """What others left in a run's `adapter` makes room while a first adapter is saved there, and comes back."""
    adapter, waiting = folder / ADAPTER, folder / BESIDE
    if adapter.is_dir() and not (adapter / ADAPTER_SPEC).exists():
        os.rename(adapter, waiting)
    try:
        yield
    finally:
        _back(waiting, adapter)


def _back(waiting: Path, adapter: Path) -> None:
    if not waiting.is_dir():
        return
    adapter.mkdir(exist_ok=True)
    for path in waiting.iterdir():
        if not os.path.lexists(adapter / path.name):
            os.rename(path, adapter / path.name)
    shutil.rmtree(waiting)
