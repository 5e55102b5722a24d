"""What a folder says of its tokens beside the adapter: it is kept, and told where the base says otherwise."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.records import read_json, read_text

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
FILES = (
    *(TEMPLATE, CONFIG, "tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
)
"""What tokenizers are saved as."""


def keep(folder: Path, target: Path, processor: Any = None) -> None:
    """Copies the tokenizer's files of `folder` into `target`, and warns of what in them is not the base's.

    `processor` prepares the base's inputs; without it, nothing can be compared, and all is told.
    """
    found = [name for name in FILES if (folder / name).is_file()]
    for name in found:
        shutil.copy2(folder / name, target / name)
    if found and (told := _differing(folder, processor)):
        warnings.warn(
            f"{folder} holds {' and '.join(told)}. They are kept in {target}, and are not used there by themselves: "
            "prompts are written as the base's own tokenizer has them.",
            stacklevel=3,
        )


def _differing(folder: Path, processor: Any) -> list[str]:
    config = _read(folder / CONFIG)
    template, own = _template(folder, config), getattr(processor, "chat_template", None)
    other = " that is not the base's" if processor is not None else ""
    told = [f"a chat template{other}"] if template not in (None, own) else []
    known = set(processor.get_vocab()) if processor is not None else set()
    added = _added(folder, config)
    strange = [token for token in dict.fromkeys(added) if token not in known]
    if strange:
        lacking = " that the base lacks" if processor is not None else ""
        told.append(f"{len(strange)} added tokens{lacking} ({strange[0]!r} first)")
    return told


def _added(folder: Path, config: dict[str, Any]) -> list[str]:
    """The tokens that the folder's files list as added."""
    decoder, listed = config.get("added_tokens_decoder"), _read(folder / "tokenizer.json").get("added_tokens")
    entries = [*(decoder.values() if isinstance(decoder, dict) else []), *(listed if isinstance(listed, list) else [])]
    found = [str(each["content"]) for each in entries if isinstance(each, dict) and "content" in each]
    return [*found, *map(str, _read(folder / "added_tokens.json"))]


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return read_text(folder / TEMPLATE)
    found = config.get("chat_template")
    return found if isinstance(found, str) else None


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; nothing for none, or for a file that is no such object."""
    try:
        found = read_json(path) if path.is_file() else {}
    except LuthierError:
        return {}
    return found if isinstance(found, dict) else {}
