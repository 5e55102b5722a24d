"""LoRA files of diffusers' pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.interop.formats._low_rank import LowRankFormat

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


@dataclass(frozen=True)
class Diffusers(LowRankFormat):
    """W + s B A of unet.…, text_encoder.… ↔ pytorch_lora_weights.safetensors

    Names as peft's (`lora_A`, `lora_B`) and as before it (`lora.down`, `lora.up`). The scale is that of the metadata
    (`lora_adapter_metadata`, since diffusers 0.35: lora_alpha and its patterns, rsLoRA); a file without is run, and
    read, with alpha = r. Read are linear layers and convolutions of the UNet and of the text encoders, each for its own
    model.

    A file that is written holds the part that the base is. It has no metadata, the scale lies in `lora_B`, and all
    layers have one rank: lower ones are filled up, which changes nothing.
    """

    paper = "diffusers 0.35 (Hugging Face), `load_lora_weights`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return any((folder / name).is_file() for name in FILES)

    def task(self, folder: Path) -> str | None:
        return "embedding"  # so that parts of a pipeline are loaded as they are, without a head

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "diffusers"}

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._diffusers import pairs_of, parts, told
        from luthier.interop.formats._diffusion import mine, part_of
        from luthier.interop.formats._factors import lora_of
        from luthier.interop.formats._files import header, inside, read_tensors

        path = inside(folder, next((name for name in FILES if (folder / name).is_file()), FILES[0]))
        metadata = header(path)[1] if path.suffix == ".safetensors" else {}
        part = part_of(folder, model)
        held = mine(folder, parts(folder, read_tensors(path, numbers=True)), part)
        return lora_of(folder, pairs_of(folder, held, told(folder, metadata, part), model), model)

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._diffusion import part_to_write

        part_to_write(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.interop.formats._diffusion import part_to_write
        from luthier.interop.formats._diffusion_write import contents, in_text_encoder
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import changed_weights

        part, factoring = part_to_write(outgoing.model), self.factoring()
        factors = contents(changed_weights(outgoing.model, outgoing.name), factoring)
        tensors = {}
        for path, (b, a) in factors.items():
            name = f"{part}.{path if part == 'unet' else in_text_encoder(path)}"
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        save_file(by_itself(tensors), folder / FILES[0], {"format": "pt"})
        return factoring.lost
