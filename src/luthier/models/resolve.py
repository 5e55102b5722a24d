"""What a MODEL argument means: a folder, a .gguf file, a name of the catalogue or a hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of
from luthier.models.cache import commit
from luthier.models.catalogue import catalogue
from luthier.models.convert import gguf
from luthier.models.fetch import convert, fetch, sha256
from luthier.models.progress import step

READ = 3
"""Raised whenever .gguf files are read better than before, so that none is taken from the cache as it was read then."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(name: str, progress: bool = True) -> Path | str:
    """Returns the local folder that `name` stands for, or the hub id `org/name` itself.

    A folder with a config.json comes first, then a .gguf file (converted once into the cache), then
    the catalogue (fetched if not cached), then hub ids. Anything else raises `LuthierError` with near
    names.
    """
    path = path_of(name, "no model")
    if os.path.isfile(path / "config.json"):
        return path
    if path.suffix == ".gguf":
        return converted(path, progress)
    names = [entry.name for entry in catalogue()]
    if name in names:
        return fetch(name, progress)
    if path.is_dir():
        raise LuthierError(f"the folder {name} holds no config.json, so it is not a transformers model{_instead(path)}")
    if _HUB_ID.fullmatch(name):
        return name
    raise LuthierError(
        f"no model {name!r}: no such folder{near(name, names) or '.'} The catalogue has "
        f"{', '.join(names)}; else give a folder, a .gguf file or a hub id org/name."
    )


def _instead(folder: Path) -> str:
    """What a folder without config.json is, or has in it, with the way on."""
    holds = {file.name for file in folder.iterdir()}
    if holds & {"adapter.json", "run.json", "adapter_config.json"}:
        told = (
            "MODEL --adapter" if "adapter_config.json" not in holds else "`luthier import` first, then MODEL --adapter"
        )
        return f": it is an adapter's or a run's. Give the model that it was fitted on, and this folder as {told}."
    files = sorted(each for each in holds if each.endswith(".gguf"))
    if files:
        return f". Give one of the .gguf files in it by its own name: {', '.join(files[:3])}."
    inner = sorted(each.parent.name for each in folder.glob("*/config.json"))
    inner += sorted(f"snapshots/{each.parent.name}" for each in folder.glob("snapshots/*/config.json"))
    return f". Models are in it: {', '.join(inner[:3])}." if inner else "."


def converted(weights: Path, progress: bool = True) -> Path:
    """Returns the cached safetensors folder of a .gguf file, keyed by its sha256; made the first time."""
    if not weights.is_file():
        raise LuthierError(f"no file {weights}.")
    gguf.check(weights)  # before all of it is read for its digest
    stem = re.sub(r"[^a-z0-9.-]+", "-", weights.stem.lower())

    def build(scratch: Path) -> Path:
        with step(f"converting {weights.name}", progress):
            convert("gguf", weights, scratch / "model")
        return scratch / "model"

    return commit(f"{stem}-{sha256(weights)[:8]}-{READ}", build)
