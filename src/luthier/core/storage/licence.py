"""The licence of a base, as its card or its configuration states it."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONGEST = 256
"""Characters of the longest name of a licence."""


def stated_licence(name: str) -> str | None:
    """Returns what the model's card or its configuration calls its licence; None where neither does.

    `name` is a folder, or a hub id, whose card is looked for in the local hub cache.
    """
    found = _of_card(_file(name, "README.md")) or _of_config(_file(name, "config.json"))
    return found if found and len(found) <= LONGEST and found.isprintable() else None


def _file(name: str, file: str) -> Path | None:
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, file)
    except HFValidationError:  # no hub id: a .gguf file, say
        return None
    return Path(cached) if isinstance(cached, str) else None


def _of_card(path: Path | None) -> str | None:
    """`license` of the YAML at the head of a card; of a licence without identifier, its name."""
    if path is None:
        return None
    from huggingface_hub.repocard import metadata_load

    try:
        data = metadata_load(path) or {}
    except Exception:
        return None
    licence = data.get("license_name") if data.get("license") == "other" else data.get("license")
    return licence if isinstance(licence, str) else None


def _of_config(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        licence = json.loads(path.read_text(encoding="utf-8"))["license"]
    except Exception:
        return None
    return licence if isinstance(licence, str) else None
