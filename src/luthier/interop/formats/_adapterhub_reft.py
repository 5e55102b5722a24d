"""LoReFT as AdapterHub's library stores it: a unit for first positions and one for last, torch's parametrised pairs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.interop.formats._adapterhub_lora import Groups, grouped, number
from luthier.interop.formats._factors import own_paths
from luthier.interop.formats._pyreft_read import parametrised
from luthier.methods.forms._reft import stored
from luthier.methods.forms.loreft import LoReFT

UNIT = re.compile(r"(?P<path>.+\.reft_layer\.refts\.[^.]+\.units\.[01])\.(?P<end>learned_source\..+|projection\..+)")
PAIR = "projection.parametrizations.weight."
ENDS = {"learned_source.weight", "learned_source.bias", f"{PAIR}original", f"{PAIR}0.base"}


def read_reft(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LoReFT behind blocks, at the first and the last positions of a prompt."""
    _refuse(folder, config)
    first, last = (_count(folder, config, key) for key in ("prefix_positions", "suffix_positions"))
    spelled = {"0": f"f{first}" if first else "", "1": f"l{last}" if last else ""}
    if config.get("tied_weights"):
        spelled = {"0": "+".join(filter(None, spelled.values()))}
    units: dict[str, Groups] = {}
    for path, found in grouped(folder, held, UNIT).items():
        block, _, rest = path.partition(".reft_layer.")
        if rest[-1] not in spelled or set(found) != ENDS:
            raise LuthierError(f"{folder}: {path} holds {', '.join(sorted(found))}, which are not those of LoReFT.")
        units.setdefault(rest[-1], {})[block] = _tensors(folder, path, found)
    warnings.warn(
        f"{folder} edits the first and last positions of what adapters 1.3 is given: of each pass, so that it also "
        "edits every token that it writes with a cache, and of prompts with fewer than two positions for each all. "
        "Here it is the prompt that is edited, and of a short one a half from either end.",
        stacklevel=2,
    )
    return [
        _found(folder, each, positions, number(folder, config, "dropout"), model)
        for unit, positions in spelled.items()
        if positions and (each := units.get(unit))
    ]


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    why = None
    if not config.get("orthogonality"):
        why = (
            "its folders do not say whether the projection is subtracted, NoReFT and DiReFT being saved alike, and "
            "adapters 1.3 loads both as NoReFT"
        )
    elif config.get("non_linearity") not in (None, "linear"):
        why = f"non_linearity={config['non_linearity']!r} has no equal here"
    elif config.get("subtract_projection", True) is not True:
        why = "subtract_projection=False with an orthogonal projection has no equal here"
    if why:
        raise LuthierError(f"{folder} is reft of adapters, of which LoReFT is read here: {why}.")


def _count(folder: Path, config: Mapping[str, Any], key: str) -> int:
    count = config.get(key)
    if type(count) is not int or count < 0 or not (config.get("prefix_positions") or config.get("suffix_positions")):
        raise LuthierError(f"{folder}: {key} is {count!r}; expected a number of positions, and some in all.")
    return count


def _tensors(folder: Path, path: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rotation = parametrised(folder, {key.removeprefix(PAIR): t for key, t in found.items() if key.startswith(PAIR)})
    w, b = found["learned_source.weight"], found["learned_source.bias"]
    if w.shape != rotation.shape or b.shape != rotation.shape[:1]:
        raise LuthierError(f"{folder}: the tensors of {path} do not fit each other.")
    return {"R": stored(rotation), "W": w, "b": b}


def _found(folder: Path, unit: Groups, positions: str, dropout: float, model: nn.Module) -> Found:
    ranks = {len(found["b"]) for found in unit.values()}
    if len(ranks) != 1 or not 0 <= dropout < 1:
        raise LuthierError(
            f"{folder}: LoReFT of {len(ranks)} ranks and a dropout of {dropout}; expected one, and a rate."
        )
    names = own_paths(folder, list(unit), model)
    form = LoReFT(rank=ranks.pop(), dropout=dropout, positions=positions)
    return Found(form, "stream", {names[path]: found for path, found in unit.items()})
