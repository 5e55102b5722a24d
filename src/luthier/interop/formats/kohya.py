"""LoRA files of kohya's sd-scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.interop.formats._low_rank import LowRankFormat

WEIGHTS = "lora.safetensors"


@dataclass(frozen=True)
class Kohya(LowRankFormat):
    """W + (alpha / r) up · down of lora_unet_…, lora_te_… ↔ a .safetensors file

    The names of layers have underscores for dots. alpha is a tensor for each layer; one that is not there, or 0, means
    a factor of 1. Read are linear layers and convolutions of the UNet (as diffusers names its layers or, as sd-scripts
    does for SDXL, the original code) and of the text encoders, each for its own model. LoHa, LoKr, DoRA and whole
    differences (LyCORIS) are refused.

    A file that is written holds the part that the base is. alpha is the rank, the scale lies in `lora_up`, and all
    layers have one rank: lower ones are filled up, which changes nothing.
    """

    paper = "sd-scripts (kohya-ss), `networks/lora.py`"

    sdxl: bool = False
    """The text encoder that is written is the first of SDXL (`lora_te1_`), which it does not tell of itself."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return _file(folder) is not None

    def task(self, folder: Path) -> str | None:
        return "embedding"  # so that parts of a pipeline are loaded as they are, without a head

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

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._diffusion import part_to_write

        part_to_write(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.interop.formats._diffusion import part_to_write
        from luthier.interop.formats._diffusion_write import contents as factors_of
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._kohya import contents
        from luthier.interop.formats._layers import changed_weights

        model, factoring = outgoing.model, self.factoring()
        factors = factors_of(changed_weights(model, outgoing.name), factoring)
        tensors = contents(model, part_to_write(model), factors, sdxl=self.sdxl)
        rank = str(max(len(a) for _, a in factors.values()))
        told = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
        save_file(by_itself(tensors), folder / WEIGHTS, told)
        return factoring.lost


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
