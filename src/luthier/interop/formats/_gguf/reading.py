"""Files of llama.cpp that change a model and hold none: read with every number in float32, nothing believed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.interop.formats._gguf.file import library
from luthier.models.convert.gguf_header import read_header


@dataclass(frozen=True, eq=False)
class Beside:
    """A file that is loaded beside a model."""

    path: Path
    values: dict[str, Any]
    """Its metadata by their keys: numbers, texts, short arrays."""

    @property
    def kind(self) -> str:
        """`lora` or `controlvector`; another text for a file that is neither."""
        said = self.values.get
        if said("general.type") == "adapter":
            return str(said("adapter.type"))
        return str(said("general.architecture"))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors by name, in float32, rows first; raises `LuthierError` for damage and for NaN."""
        gguf = library()
        with guarded(f"{self.path} is not a readable GGUF file"):
            held = {
                each.name: torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy()).float()
                for each in gguf.GGUFReader(self.path).tensors
            }
        for name, tensor in held.items():
            if not bool(tensor.isfinite().all()):
                raise LuthierError(f"{self.path}: {name} holds NaN or infinity; it was saved from a failed run.")
        return held


def beside(folder: Path, kind: str) -> Beside | None:
    """Returns the file of a kind in a folder, None where there is none; raises `LuthierError` for several."""
    found = [each for path in sorted(folder.glob("*.gguf")) if (each := _read(path)) and each.kind == kind]
    if len(found) > 1:
        names = ", ".join(each.path.name for each in found)
        raise LuthierError(f"{folder} holds several files of this kind ({names}); leave the one that is meant.")
    return found[0] if found else None


def needed(folder: Path, kind: str) -> Beside:
    """Returns the file of a kind in a folder; raises `LuthierError` where there is none."""
    found = beside(folder, kind)
    if found is None:
        raise LuthierError(f"{folder} holds no .gguf file of kind {kind}.")
    return found


def _read(path: Path) -> Beside | None:
    try:
        with guarded(f"{path} is not a readable GGUF file"):
            return Beside(path, read_header(path).values)
    except LuthierError:
        return None
