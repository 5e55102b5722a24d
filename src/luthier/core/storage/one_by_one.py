"""Files of safetensors that are written tensor after tensor, and whole models in the shards of their base."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.guard import guarded
from luthier.core.mapped import active, pieces
from luthier.core.records import recorded

INDEX = "model.safetensors.index.json"
TYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16"},
    **{torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"},
}
"""What safetensors calls dtypes, in the order in which it sorts them, the last first."""


def write(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the very file that safetensors' `save_file` writes; where mapped weights are to leave memory again
    (`luthier.core.mapped.low_memory`), one tensor is in memory at a time."""
    from safetensors.torch import save_file

    if not active() or any(tensor.dtype not in TYPES for tensor in tensors.values()):
        save_file(dict(tensors), path, dict(metadata or {}) or None)
        return
    last = {dtype: -place for place, dtype in enumerate(TYPES)}
    order = sorted(tensors, key=lambda name: (last[tensors[name].dtype], name.encode()))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": TYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in pieces(tensors[name]):
                file.write(piece)


def save_model(model: Any, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Saves a model of transformers, or these tensors in place of its own, in files as large as its base's."""
    shard = largest_shard(Path(getattr(model, "name_or_path", "")))
    sizes = {} if shard is None else {"max_shard_size": shard}
    with _written():
        model.save_pretrained(folder, state_dict=tensors, **sizes)


@contextmanager
def _written() -> Iterator[None]:
    """Has transformers' `save_pretrained` write its files by `write` while the context lasts, where one tensor is to be
    in memory at a time."""
    if not active():
        yield
        return
    from transformers import modeling_utils as library

    modeling_utils: Any = library
    before = modeling_utils.safe_save_file
    modeling_utils.safe_save_file = write
    try:
        yield
    finally:
        modeling_utils.safe_save_file = before


def largest_shard(folder: Path) -> int | None:
    """Returns the bytes of tensors in the largest of the files of a model folder, those left out that hold a single
    one, however large; None for a folder with one file, or with none."""
    if not folder.name or not (folder / INDEX).is_file():
        return None
    with recorded(folder / INDEX) as told:
        held = Counter(told["weight_map"].values())
    several = [name for name, count in held.items() if count > 1]
    return max(_bytes(folder / name) for name in several or held)


def _bytes(path: Path) -> int:
    with guarded(f"{path} cannot be read"), open(path, "rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
