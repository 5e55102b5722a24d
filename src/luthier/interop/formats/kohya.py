"""LoRA files of kohya's sd-scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Format, Found
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class Kohya(Format):
    """W + (alpha / r) up · down of lora_unet_…, lora_te_… in a .safetensors file → LoRA

    The names of layers have underscores for dots. alpha is a tensor for each layer; one that is not there, or 0, means
    a factor of 1. Read are linear layers and convolutions of the UNet (Stable Diffusion 1 and 2, as diffusers names its
    layers) and of the text encoders, each for its own model. LoHa, LoKr, DoRA and whole differences (LyCORIS) are
    refused, and so are SDXL's UNets, whose names are those of the original code.
    """

    paper = "sd-scripts (kohya-ss), `networks/lora.py`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return _file(folder) is not None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "sd-scripts"}

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._diffusion import mine, part_of
        from luthier.interop.formats._factors import lora_of
        from luthier.interop.formats._files import read_tensors
        from luthier.interop.formats._kohya import pairs_of, parts

        path = _file(folder)
        if path is None:
            raise LuthierError(f"{folder} holds no .safetensors file with names as lora_unet_….lora_down.weight.")
        held = mine(folder, parts(folder, read_tensors(path, numbers=True)), part_of(folder, model))
        return lora_of(folder, pairs_of(folder, held, model), model)


def _file(folder: Path) -> Path | None:
    """The file of a folder that is kohya's; raises `LuthierError` for several."""
    from luthier.interop.formats._files import header
    from luthier.interop.formats._kohya import MARK

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            keys, _ = header(path)
        except LuthierError:
            continue
        found += [path] if any(MARK.match(key) for key in keys) else []
    if len(found) > 1:
        raise LuthierError(f"{folder} holds several files of kohya's ({', '.join(p.name for p in found)}); leave one.")
    return found[0] if found else None
