"""Names and scales in the files of kohya's sd-scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import nearest
from luthier.interop.formats._diffusion import by_underscores, refuse_strange
from luthier.interop.formats._diffusion_write import in_text_encoder
from luthier.interop.formats._factors import Pair
from luthier.interop.formats._sdxl import original_names

MARK = re.compile(r"lora_(unet|te|te1|te2)_[^.]+\.")
PARTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
ENDS = {"lora_down.weight": "A", "lora_up.weight": "B", "alpha": "alpha"}
TAKEN = re.compile(r".*(\.(attentions|resnets)\.\d+\..+|\.(downsamplers|upsamplers)\.\d+\.conv)")


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


def contents(
    model: nn.Module, part: str, factors: Mapping[str, tuple[Tensor, Tensor]], *, sdxl: bool
) -> dict[str, Tensor]:
    """The tensors of a file, by their names; alpha is the rank, as the scale is inside B."""
    name = _unet_name(model) if part == "unet" else in_text_encoder
    if sdxl and part == "unet" and not _is_sdxl(model):
        raise LuthierError("sdxl is given, and this UNet has no add_embedding, as those of SDXL do; leave it out.")
    mark = {"unet": "unet", "text_encoder": "te1" if sdxl else "te", "text_encoder_2": "te2"}[part]
    tensors = {}
    for path, (b, a) in factors.items():
        key = f"lora_{mark}_{name(path).replace('.', '_')}"
        tensors |= {
            f"{key}.lora_down.weight": a,
            f"{key}.lora_up.weight": b,
            f"{key}.alpha": torch.tensor(float(len(a))),
        }
    return tensors


def _unet_name(model: nn.Module) -> Callable[[str], str]:
    """How sd-scripts calls the layers of a UNet: SDXL's as the original code, others as diffusers."""
    originals = original_names(model) if _is_sdxl(model) else {}

    def name(path: str) -> str:
        if not TAKEN.fullmatch(path):
            raise LuthierError(
                f"{path} is adapted, and sd-scripts has LoRA on layers of attentions, resnets and samplers alone. "
                "Export it as diffusers (--to diffusers) instead."
            )
        return originals.get(path, path)

    return name


def _is_sdxl(model: nn.Module) -> bool:
    return any(name == "add_embedding" for name, _ in model.named_children())
