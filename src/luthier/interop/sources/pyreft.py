"""pyreft's folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.import_ import Found, Source
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class PyReFT(Source):
    """config.json, intkey_*.bin → LoReFT, NoReFT, DiReFT, ConsReFT or LobiReFT

    pyreft's files do not say which positions are edited, so `positions` must: one group for each intervention of a
    layer, f7+l7 where first and last positions share one, f7,l7 where each has its own. What pyreft calls Direft and
    Nodireft are both DiReFT here. A rotation that was rounded to half precision is kept as it stands, as NoReFT. The
    files are pickles: they are opened as tensors and nothing else.
    """

    paper = "pyreft 0.1 (Wu, Arora et al. 2024), `ReftModel.load`"

    positions: str | None = None
    """Positions that were edited, as in training (f7+l7; f3,l3; all)."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.core.files import read_json

        if not (folder / "config.json").is_file():
            return False
        config = read_json(folder / "config.json")
        return isinstance(config, dict) and {"representations", "intervention_types"} <= set(config)

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.core.files import read_json
        from luthier.interop.formats import _pyreft_read as pyreft
        from luthier.interop.formats._files import inside, read_tensors

        if (folder / "pytorch_model.bin").exists():
            raise LuthierError(f"{folder} holds trained weights of the model as well, which pyreft keeps as a pickle.")
        config = read_json(folder / "config.json")
        groups: dict[tuple[int, str, type, int], dict[str, dict[str, Tensor]]] = {}
        seen: dict[tuple[str, str], int] = {}
        for place in pyreft.representations(folder, config):
            kind, path = pyreft.site_of(folder, place, model)
            held = read_tensors(inside(folder, f"intkey_{place['key']}.bin"))
            form, tensors = pyreft.read(folder, place["class"], held)
            turn = seen[kind, path] = seen.get((kind, path), -1) + 1
            groups.setdefault((turn, kind, form, len(tensors["b"])), {})[path] = tensors
        positions = self._groups(folder, 1 + max(seen.values()))
        return [
            Found(form(rank=rank, positions=positions[turn]), kind, paths)
            for (turn, kind, form, rank), paths in groups.items()
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
