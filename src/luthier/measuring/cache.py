"""What was measured, kept by everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luthier.core.files import cache_root
from luthier.core.guard import is_of_disk
from luthier.core.sites.collect import Measured
from luthier.core.version import __version__


def folder() -> Path:
    """Returns `$LUTHIER_CACHE/measured`, by default `~/.cache/luthier/measured`."""
    return cache_root() / "measured"


def key_of(inputs: Mapping[str, Any]) -> str:
    """Returns the name of a result that stands on `ground`; another version of Luthier measures anew."""
    text = json.dumps({**inputs, "luthier": __version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def read(key: str) -> Measured | None:
    """Returns the result, or None where there is none, or none that can be read."""
    try:
        held = load_file(folder() / f"{key}.safetensors")
    except Exception:
        return None
    found: Measured = {}
    for name, tensor in held.items():
        path, _, statistic = name.rpartition("|")
        found.setdefault(path, {})[statistic] = tensor
    return found


def write(key: str, measured: Measured) -> None:
    """Keeps a result, whole or not at all; without a folder that can be written nothing is kept."""
    held = {f"{path}|{name}": t for path, found in measured.items() for name, t in found.items()}
    own = {name: tensor.clone() for name, tensor in held.items()}  # followers share their leader's
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder()) as scratch:
            save_file(own, Path(scratch) / "result")
            (Path(scratch) / "result").replace(folder() / f"{key}.safetensors")
    except Exception as error:
        if not is_of_disk(error):
            raise
