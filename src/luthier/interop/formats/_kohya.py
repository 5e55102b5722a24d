"""Names and scales in the files of kohya's sd-scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import nearest
from luthier.interop.formats._diffusion import by_underscores, refuse_strange
from luthier.interop.formats._factors import Pair

MARK = re.compile(r"lora_(unet|te|te1|te2)_[^.]+\.")
PARTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
ENDS = {"lora_down.weight": "A", "lora_up.weight": "B", "alpha": "alpha"}
ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)_\d")


def parts(folder: Path, held: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{part of the pipeline: {name of the layer and end: tensor}}`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        match = MARK.match(key)
        if match is None:
            raise LuthierError(f"{folder} holds {key}; expected names that begin with lora_unet_ or lora_te_.")
        found.setdefault(PARTS[match[1]], {})[key.removeprefix(f"lora_{match[1]}_")] = tensor
    return found


def pairs_of(folder: Path, held: Mapping[str, Tensor], model: nn.Module) -> dict[str, Pair]:
    """Returns `{path: factors}`; the scale is alpha / r, and 1 where alpha is 0 or not there."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        name, _, end = key.partition(".")
        if end not in ENDS:
            refuse_strange(folder, key)
        groups.setdefault(name, {})[ENDS[end]] = tensor
    known = by_underscores(model)
    return {_own(folder, name, known, model): _pair(folder, name, found) for name, found in groups.items()}


def _own(folder: Path, name: str, known: Mapping[str, str], model: nn.Module) -> str:
    if name in known:
        return known[name]
    if ORIGINAL.match(name):
        raise LuthierError(
            f"{folder} names {name}, as the original code of SDXL and Stable Diffusion does, and not diffusers. Load "
            "it with diffusers (load_lora_weights) and save it there (save_lora_weights)."
        )
    raise LuthierError(
        f"{folder} holds tensors of {name}, which is not a layer of this {type(model).__name__}"
        f"{nearest(name, model)} It was fitted on another base."
    )


def _pair(folder: Path, name: str, found: Mapping[str, Tensor]) -> Pair:
    if set(found) - {"alpha"} != {"A", "B"}:
        raise LuthierError(f"{folder}: {name} has {', '.join(sorted(found))}; expected lora_down and lora_up.")
    a, b, alpha = found["A"], found["B"], found.get("alpha")
    if a.dim() < 2 or b.dim() < 2 or (alpha is not None and alpha.numel() != 1):
        raise LuthierError(f"{folder}: the tensors of {name} are no matrices and a number.")
    strength = float(alpha) if alpha is not None else 0.0
    return Pair(b, a, strength / len(a) if strength else 1.0)
