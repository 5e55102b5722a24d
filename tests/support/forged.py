"""Adapters whose contents are changed and whose checksums are right again: what only the contents show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luthier.core.files import sha256
from luthier.core.storage.format import CHECKSUM, checksum


def reseal(adapter: Path) -> None:
    """Makes the checksums of an adapter those of its files, where there is still a spec to hold them."""
    try:
        spec = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
        spec["sha256"] = sha256(adapter / "adapter.safetensors")
        spec[CHECKSUM] = checksum(spec)
        (adapter / "adapter.json").write_text(json.dumps(spec), encoding="utf-8")
    except (ValueError, TypeError, RecursionError):
        return


def forge_spec(adapter: Path, change: Callable[[Any], Any]) -> None:
    """Changes the spec."""
    spec = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
    (adapter / "adapter.json").write_text(json.dumps(change(spec)), encoding="utf-8")
    reseal(adapter)


def forge_tensors(adapter: Path, change: Callable[[Any], Any]) -> None:
    """Changes the tensors."""
    held = load_file(adapter / "adapter.safetensors")
    save_file(change(held), adapter / "adapter.safetensors")
    reseal(adapter)
