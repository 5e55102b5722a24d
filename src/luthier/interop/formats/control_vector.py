"""Control vectors, as llama.cpp and repeng keep them: a constant that is added behind blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luthier.core.contracts.format import Format, Found, Outgoing
from luthier.core.errors import LuthierError

KIND = "controlvector"


@dataclass(frozen=True)
class ControlVector(Format):
    """h_k + strength · direction.k behind block k, for every token ↔ vector.gguf

    Blocks count from 0, and llama.cpp has no place for one behind block 0. Read as LobiReFT of rank 1 at every
    position, whose R is the direction's and b its length; directions of zeros are left out. Written are adapters that
    add the same vector to the stream for every token and do nothing else (lobireft with positions all); several of a
    block are added up.
    """

    paper = "llama.cpp (ggml-org), `--control-vector`; repeng 0.4 (Vogel 2024), `ControlVector.export_gguf`"
    for_reading: ClassVar[tuple[str, ...]] = ("strength",)

    strength: float = 1.0
    """What the directions are multiplied by (llama.cpp's `--control-vector-scaled`); negative turns them around."""

    def check(self) -> None:
        if not abs(self.strength) < float("inf"):
            raise LuthierError(f"strength is {self.strength}; expected a number.")

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._gguf.reading import beside

        return beside(folder, KIND) is not None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "llama.cpp", "strength": self.strength}

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._control_vector import directions, edits
        from luthier.interop.formats._gguf.reading import needed

        return edits(folder, directions(needed(folder, KIND), model), self.strength)

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._gguf.file import library

        library()

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._control_vector import constants
        from luthier.interop.formats._gguf.file import library

        found = constants(outgoing.model, outgoing.name)
        writer = library().GGUFWriter(folder / "vector.gguf", KIND)
        writer.add_string(f"{KIND}.model_hint", str(getattr(outgoing.model.config, "model_type", "")))
        writer.add_uint32(f"{KIND}.layer_count", len(found))
        for block, direction in found.items():
            writer.add_tensor(f"direction.{block}", direction.cpu().float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {}
