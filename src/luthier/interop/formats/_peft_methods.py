"""Methods of peft beside LORA: IA3, AdaLoRA, modules that are trained whole, tokens; and the reader of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_modules, base_parameters, raw_parameter, unfolded_features
from luthier.interop.formats import _peft_beside as beside
from luthier.interop.formats._factors import Pair, lora_of
from luthier.interop.formats._peft_config import merging
from luthier.interop.formats._peft_keys import unwrapped
from luthier.interop.formats._peft_prefix import read_prefix
from luthier.interop.formats._peft_read import Reader, indices_of, read_lora, sorted_out
from luthier.interop.formats._peft_targets import bounded, matches
from luthier.methods.forms.ia3 import IA3
from luthier.methods.forms.lora import LoRA


def read_ia3(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """IA3: a column scales what leaves a layer, a row what enters it."""
    groups, rest = sorted_out(folder, config, tensors, {"ia3_l": "l"}, model)
    sides: dict[str, dict[str, dict[str, Tensor]]] = {"affine": {}, "input": {}}
    for path, found in groups.items():
        if isinstance(model.get_submodule(path), _ConvNd):
            raise LuthierError(
                f"{folder} adapts the convolution {path}, where IA3 is not read. {merging(tensors, model)}"
            )
        vector = found["l"]
        if vector.dim() != 2 or 1 not in vector.shape:
            raise LuthierError(f"{folder}: ia3_l of {path} is {tuple(vector.shape)}; expected one row or one column.")
        sides["input" if vector.shape[0] == 1 else "affine"][path] = {"l": vector.flatten()}
    scaled = [Found(IA3(), kind, paths) for kind, paths in sides.items() if paths]
    return [*scaled, *beside.whole_parameters(folder, config, rest, model)]


def read_adalora(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """ADALORA: B diag(E) A, times lora_alpha over the rank that each layer began with, however many are left."""
    ends = {"lora_A": "A", "lora_B": "B", "lora_E": "E"}
    groups, rest = sorted_out(folder, config, tensors, ends, model)
    kept: dict[str, dict[str, Tensor]] = {}
    for path, found in groups.items():
        if set(found) != {"A", "B", "E"} or found["E"].shape != (len(found["A"]), 1):
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))} of shapes that do not fit each other.")
        if rank := len(found["A"]):
            scale = _adalora_scale(folder, config, rank)
            kept[path] = {"A": found["A"], "B": found["B"] * (scale * found["E"].mT)}
    kernels = {path: kept.pop(path) for path in list(kept) if unfolded_features(model.get_submodule(path))}
    ranks = {path: len(found["A"]) for path, found in kept.items()}
    most = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    form = LoRA(rank=most, alpha=float(most), dropout=float(config.get("lora_dropout") or 0.0))
    lora = Found(form, "affine", kept, ranks if set(ranks.values()) != {most} else {})
    convolved = lora_of(folder, {path: _kernel(folder, path, found, model) for path, found in kernels.items()}, model)
    return [*([lora] if kept else []), *convolved, *beside.whole_parameters(folder, config, rest, model)]


def _kernel(folder: Path, path: str, found: Mapping[str, Tensor], model: nn.Module) -> Pair:
    """AdaLoRA's matrices of a convolution as its kernel and one of 1 x 1."""
    shape = raw_parameter(model, f"{path}.weight").shape
    if found["A"].shape[1:].numel() != shape[1:].numel():
        raise LuthierError(
            f"{folder}: A of {path} is {tuple(found['A'].shape)}; this base expects {shape[1:].numel()}."
        )
    ones = (1,) * (len(shape) - 2)
    return Pair(found["B"].reshape(*found["B"].shape, *ones), found["A"].reshape(-1, *shape[1:]))


def _adalora_scale(folder: Path, config: Mapping[str, Any], rank: int) -> float:
    """peft's scale of a layer of which `rank` directions are left; it adds 1e-5 to the rank that all began with."""
    alpha, start = config.get("lora_alpha") or rank, config.get("init_r", rank)
    for key, value in (("lora_alpha", alpha), ("init_r", start)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise LuthierError(f"{folder}: {key} is {value!r}; expected a finite number.")
    if start < rank:
        raise LuthierError(f"{folder}: a layer has rank {rank}, and all began with init_r={start}.")
    return (alpha if alpha > 0 else rank) / (start + 1e-5)


def read_norms(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LN_TUNING: modules that were trained whole, norms as a rule."""
    beside_it, named = config.get("modules_to_save") or [], config.get("target_modules") or []
    if isinstance(beside_it, str):
        raise LuthierError(f"{folder}: modules_to_save is {beside_it!r}; expected a list of names.")
    plain = _without_layers(tensors, model)
    _, rest = sorted_out(folder, {**config, "target_modules": None}, plain, {}, model)
    if isinstance(named, str) and bounded(named):
        named = [path for path, _ in base_modules(model) if matches(folder, rf"(?:{named})\Z", path)]
    elif isinstance(named, str):  # too long to be matched: what the file holds counts
        named = sorted({unwrapped(key).partition(LAYERS)[0] for key in tensors if LAYERS in key})
    return beside.whole_parameters(folder, {**config, "modules_to_save": [*beside_it, *named]}, rest, model)


LAYERS, COPIES = ".ln_tuning_layers.", ".modules_to_save."


def _without_layers(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors by the paths of the modules themselves. An adapter's name behind peft's, in a model's own
    state, is left out where no module in there is called so."""
    known = {*(path for path, _ in base_parameters(model, remove_duplicate=False)), *dict(model.named_buffers())}
    inside = {key: unwrapped(key).partition(LAYERS)[::2] for key in tensors if LAYERS in key}
    names = {rest.partition(".")[0] for _, rest in inside.values()}
    if len(names) != 1 or any(
        f"{path}.{rest}" in known or f"{path}.{rest.partition('.')[2]}" not in known for path, rest in inside.values()
    ):
        plain = {key: f"{path}.{rest}" for key, (path, rest) in inside.items()}
        return {plain.get(key, key): tensor for key, tensor in tensors.items()}
    plain = {key: f"{path}.{rest.partition('.')[2]}" for key, (path, rest) in inside.items()}
    copy = f"{COPIES}{names.pop()}."
    return {plain.get(key, key.replace(copy, COPIES)): tensor for key, tensor in tensors.items()}


def read_tokens(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """TRAINABLE_TOKENS: rows of tables."""
    groups, rest = sorted_out(folder, config, tensors, {"trainable_tokens_delta": "rows"}, model)
    rows = {path: found["rows"] for path, found in groups.items()}
    told = indices_of(folder, {"trainable_token_indices": config.get("token_indices")}, rows)
    return [*beside.tokens(folder, rows, told, model), *beside.whole_parameters(folder, config, rest, model)]


READERS: Mapping[str, Reader] = {
    "LORA": read_lora,
    "ADALORA": read_adalora,
    "IA3": read_ia3,
    "LN_TUNING": read_norms,
    "TRAINABLE_TOKENS": read_tokens,
    "PREFIX_TUNING": read_prefix,
}
"""By `peft_type`."""
