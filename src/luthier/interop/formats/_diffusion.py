"""LoRA files of picture models: which part of a file is for a base, and how its layers are called."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import names_of
from luthier.interop.formats._sdxl import original_names

PARTS: Mapping[str, str] = {
    **{"UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder"},
    **{"CLIPTextModelWithProjection": "text_encoder_2"},
}
"""The part of a pipeline that a model is, by its class."""
STRANGE = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a third factor",
    "diff": "whole differences",
}
"""What an end of a name says that the file holds besides plain factors."""


def part_of(folder: Path, model: nn.Module) -> str:
    """The part of a pipeline that a base is; raises `LuthierError` for another model."""
    found = _known_part(model)
    if found is None:
        raise LuthierError(
            f"{folder} is for the parts of a pipeline of diffusers, and this base is a {type(model).__name__}; read "
            f"here are those of {', '.join(PARTS)}. Load the part (pipeline.unet) and import the folder for it."
        )
    return found


def part_to_write(model: nn.Module) -> str:
    """The part of a pipeline that a base is; raises `LuthierError` for a model that no pipeline here has."""
    found = _known_part(model)
    if found is None:
        raise LuthierError(
            f"{type(model).__name__} is none of the parts of a pipeline whose files are written here: a UNet or a text "
            "encoder of CLIP's. Export it as peft (--to peft) instead."
        )
    return found


def _known_part(model: nn.Module) -> str | None:
    return next((PARTS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in PARTS), None)


def mine(folder: Path, held: Mapping[str, dict[str, Tensor]], part: str) -> dict[str, Tensor]:
    """The tensors of one part; those of others are told."""
    if part not in held:
        raise LuthierError(f"{folder} holds tensors of {', '.join(held) or 'nothing'}, and none of {part}.")
    if others := [name for name in held if name != part]:
        warnings.warn(
            f"{folder} holds tensors of {', '.join(others)} too, which are other models; import it once for each.",
            stacklevel=2,
        )
    return held[part]


def refuse_strange(folder: Path, key: str) -> None:
    """Raises for a tensor that is not a plain factor."""
    end = key.partition(".")[2] if key.count(".") <= 2 else key.rpartition(".")[2]
    kind = next((what for mark, what in STRANGE.items() if end.startswith(mark) or f".{mark}" in key), None)
    raise LuthierError(
        f"{folder} holds {key}"
        + (f", of {kind}: plain LoRA alone is read here." if kind else ", which is not a factor that is known here.")
    )


def by_underscores(model: nn.Module) -> dict[str, str]:
    """`{path with underscores for dots: path}`, also as transformers 4 had text encoders (`text_model.` in front) and
    as the original code had UNets."""
    paths = names_of(model)
    found = {path.replace(".", "_"): path for path in paths}
    originals = {name.replace(".", "_"): path for path, name in original_names(model).items()}
    return originals | {f"text_model_{key}": path for key, path in found.items()} | found
