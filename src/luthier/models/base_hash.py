"""What tells the files of a base from others, without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from luthier.core.guard import guarded
from luthier.models.resolve import resolve

SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "chat_template.jinja", "chat_template.json"),
)
"""Files of a base that count whole."""
PIECE, STRIDE = 4096, 2**20
"""Bytes that are read of weights, and how far apart."""
LARGEST = 2**27
"""Bytes of the longest header of a safetensors file that is read."""


def base_hash(name: str) -> str | None:
    """Returns a hash of the files of the base that `name` stands for; None where they do not lie on this machine yet.

    Settings, tokenizer, chat template and code count whole, of the weights every tensor: its first and last 4 KiB and
    as much of each MiB between. So a base of 16 GB takes some 64 MB of reading.
    """
    folder = _folder(name)
    if folder is None:
        return None
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with guarded(f"{path} cannot be read"):
            if path.name in SETTINGS or path.suffix == ".py":
                found.update(path.name.encode() + path.read_bytes())
            elif path.suffix in (".safetensors", ".bin"):
                found.update(f"{path.name} {path.stat().st_size}".encode())
                for piece in _sampled(path):
                    found.update(piece)
    return found.hexdigest()


def _folder(name: str) -> Path | None:
    folder = resolve(name, progress=False)
    if isinstance(folder, Path):
        return folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(folder, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _sampled(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for start, end in _tensors(file, path):
            for place in (*range(start, end, STRIDE), max(start, end - PIECE)):
                file.seek(place)
                yield file.read(min(PIECE, end - place))


def _tensors(file: BinaryIO, path: Path) -> list[tuple[int, int]]:
    """Where each tensor of a file begins and ends, its header before them; of another file, the whole."""
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if path.suffix != ".safetensors" or not 0 < length <= min(LARGEST, size):
        return [(0, size)]
    with guarded(f"{path} has no readable header of safetensors"):
        header = json.loads(file.read(length))
        spans = [each["data_offsets"] for name, each in header.items() if name != "__metadata__"]
    return [(0, 8 + length), *sorted((8 + length + start, 8 + length + end) for start, end in spans)]
