"""The source that reads folders of pyreft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.format import Format, Found
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class PyReFT(Format):
    """config.json, intkey_*.bin → LoReFT, NoReFT, DiReFT, ConsReFT or LobiReFT

    pyreft's files do not say which positions are edited, so `positions` must: one group for each intervention of a
    layer, f7+l7 where first and last positions share one, f7,l7 where each has its own. What pyreft calls Direft and
    Nodireft are both DiReFT here. A rotation that was rounded to half precision is kept as it stands, as NoReFT.
    Parameters of the model that were saved with them (pytorch_model.bin: a classifier's head) come as full ones. The
    files are pickles: they are opened as tensors and nothing else.
    """

    paper = "pyreft 0.1 (Wu, Arora et al. 2024), `ReftModel.load`"
    for_reading: ClassVar[tuple[str, ...]] = ("positions",)

    positions: str | None = None
    """Positions that were edited, as in training (f7+l7; f3,l3; all). The authors' scripts count as here; pyreft's
    ReftClassificationDataset and ReftGenerationDataset leave the last prompt token out, for which there is no word."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.core.records import read_json

        if not (folder / "config.json").is_file():
            return next(folder.glob("intkey_*.bin"), None) is not None
        config = read_json(folder / "config.json")
        return isinstance(config, dict) and {"representations", "intervention_types"} <= set(config)

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.core.records import read_json
        from luthier.interop.formats import _pyreft_read as pyreft
        from luthier.interop.formats._files import inside, read_tensors

        if not (folder / "config.json").is_file():
            raise LuthierError(
                f"{folder} lacks config.json, so nothing says what its interventions are: pyreft's trainer saves none "
                "(save_intervention). Write the folder with ReftModel.save."
            )
        config = read_json(folder / "config.json")
        groups: dict[tuple[int, str, type, int], dict[str, dict[str, Tensor]]] = {}
        seen: dict[tuple[str, str], int] = {}
        for place in pyreft.representations(folder, config):
            kind, path = pyreft.site_of(folder, place, model)
            held = read_tensors(inside(folder, f"intkey_{place['key']}.bin"), pyreft.BUFFERS)
            form, tensors = pyreft.read(folder, place["class"], held)
            turn = seen[kind, path] = seen.get((kind, path), -1) + 1
            groups.setdefault((turn, kind, form, len(tensors["b"])), {})[path] = tensors
        positions = self._groups(folder, 1 + max(seen.values()))
        beside = folder / "pytorch_model.bin"
        moved = pyreft.trained(folder, read_tensors(beside), model) if beside.exists() else {}
        return [
            *(
                Found(form(rank=rank, positions=positions[turn]), kind, paths)
                for (turn, kind, form, rank), paths in groups.items()
            ),
            *([Found(Full(), "param", moved)] if moved else []),
        ]

    def _groups(self, folder: Path, count: int) -> list[str]:
        """The positions of each intervention of a layer."""
        example = ",".join(["f7", "l7", "f3"][:count]) if count > 1 else "f7+l7"
        if self.positions is None:
            raise LuthierError(
                f"{folder} does not say which positions it edits (pyreft saves none); tell them as in training: "
                f"positions={example!r} (--positions {example}), one group for each of the {count} at a layer."
            )
        groups = [group.strip() for group in self.positions.split(",")]
        if len(groups) != count:
            raise LuthierError(
                f"positions={self.positions!r} has {len(groups)} groups, and {folder} has {count} interventions at a "
                f"layer; write as many, such as {example!r}."
            )
        return groups

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "pyreft", "positions": self.positions}
