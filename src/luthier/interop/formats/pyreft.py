"""The format of pyreft: edits of states at positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.contracts.format import Format, Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.methods.forms.full import Full


@dataclass(frozen=True)
class PyReFT(Format):
    """config.json, intkey_*.bin ↔ LoReFT, NoReFT, DiReFT, ConsReFT or LobiReFT

    pyreft's files do not say which positions are edited, so `positions` must: one group for each intervention of a
    layer, f7+l7 where first and last positions share one, f7,l7 where each has its own. What pyreft calls Direft and
    Nodireft are both DiReFT here. A rotation that was rounded to half precision is kept as it stands, as NoReFT.
    Parameters of the model that were saved with them (pytorch_model.bin: a classifier's head) come as full ones. The
    files are pickles: they are opened as tensors and nothing else.

    The same forms are written, in float32, with parameters that were trained beside them. A DiReFT whose W2 has
    orthonormal rows leaves as Direft, any other as Nodireft. Positions leave as a word of the configuration that pyreft
    passes over, and with which the folder is read here again.
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
        positions = self._groups(folder, 1 + max(seen.values()), config.get(pyreft.POSITIONS))
        beside = folder / "pytorch_model.bin"
        moved = pyreft.trained(folder, read_tensors(beside), model) if beside.exists() else {}
        return [
            *(
                Found(form(rank=rank, positions=positions[turn]), kind, paths)
                for (turn, kind, form, rank), paths in groups.items()
            ),
            *([Found(Full(), "param", moved)] if moved else []),
        ]

    def _groups(self, folder: Path, count: int, told: Any) -> list[str]:
        """The positions of each intervention of a layer; `told` are those of a folder that was written here."""
        if self.positions is None and isinstance(told, list) and len(told) == count:
            return [str(each) for each in told]
        example = ",".join(["f7", "l7", "f3"][:count]) if count > 1 else "f7+l7"
        if self.positions is None:
            raise LuthierError(
                f"{folder} does not say which positions it edits (pyreft saves none); tell them as in training: "
                f"positions={example!r} (`luthier import --positions {example}`)"
                + (f", one group for each of the {count} interventions at a layer." if count > 1 else ".")
            )
        groups = [group.strip() for group in self.positions.split(",")]
        if len(groups) != count:
            raise LuthierError(
                f"positions={self.positions!r} has {len(groups)} groups, and {folder} has {count} interventions at a "
                f"layer; write as many, such as {example!r}."
            )
        return groups

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        import torch

        from luthier.core.records import write_json
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import layers_of
        from luthier.interop.formats._pyreft_write import contents

        config, files = contents(outgoing.model, layers_of(outgoing.model, outgoing.name))
        for name, tensors in files.items():
            torch.save(by_itself(tensors), folder / name)
        write_json(folder / "config.json", config)
        return {}

    def remarks(self, folder: Path, model: nn.Module) -> list[str]:
        from luthier.core.records import read_json
        from luthier.interop.formats._pyreft_read import POSITIONS

        config = read_json(folder / "config.json")
        kinds = sorted({each.split(".")[-1].removesuffix("Intervention'>") for each in config["intervention_types"]})
        groups = ", ".join(config[POSITIONS])
        found = [f"It edits positions {groups}; pyreft is told them with each call (unit_locations)."]
        rounded = [each for each in kinds if each in ("Loreft", "Direft")]
        lost = [each for each in kinds if each in ("Noreft", "Nodireft")]
        how = [f"makes {' and '.join(rounded)} in bfloat16"] if rounded else []
        how += [f"cannot make {' or '.join(lost)} (KeyError: 'add_bias')"] if lost else []
        if how:
            found.append(
                f"ReftModel.load of pyreft 0.1.0 {' and '.join(how)}. Make the interventions yourself "
                "(dtype=torch.float32, add_bias=False; get_reft_model) and give each the tensors of its file: "
                "load_state_dict(torch.load('intkey_….bin'))."
            )
        return found

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "pyreft", "positions": self.positions}
