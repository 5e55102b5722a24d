"""What peft's files say, by the method that wrote them: their keys, their settings, their scales."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.form import rank_scale
from luthier.core.contracts.import_ import Found
from luthier.core.errors import LuthierError
from luthier.methods.forms.dora import DoRA
from luthier.methods.forms.full import Full
from luthier.methods.forms.ia3 import IA3
from luthier.methods.forms.lora import LoRA

PREFIX = "base_model.model."
FACTORS = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}
FACTORS |= {"lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
"""Ends of LORA's keys, and what we call the tensors."""
TOLD = [
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "feedforward_modules",
    "init_ia3_weights",
    "megatron_core",
]
"""Settings that are read here, or that say how the adapter was trained and not what it does."""
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is."""


def refuse_unknown(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises for a setting that is on and that changes what the adapter does in a way unknown here."""
    strange = [key for key, value in config.items() if key not in TOLD and value]
    if strange:
        raise LuthierError(
            f"{folder}: {strange[0]}={config[strange[0]]!r} has no equal here, so the adapter would do something else. "
            "Merge it with peft (merge_and_unload) and use the model."
        )
    if config.get("init_lora_weights", True) not in STARTS:
        raise LuthierError(
            f"{folder}: init_lora_weights={config['init_lora_weights']!r} takes its start off the base's weights when "
            "peft loads it. Save it with path_initial_model_for_weight_conversion=… in peft first; it is then a LoRA."
        )


def read_lora(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LORA with rank and alpha patterns, rsLoRA and DoRA; parameters trained beside it become full ones."""
    groups, rest = _grouped(tensors, FACTORS)
    if not groups:
        raise LuthierError(f"{folder} holds no factors (lora_A, lora_B).")
    dora = bool(config.get("use_dora"))
    for path, found in groups.items():
        if set(found) != ({"A", "B", "m"} if dora else {"A", "B"}):
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected A, B{' and m' * dora}.")
        if found["A"].dim() != 2 or found["B"].dim() != 2 or len(found["A"]) != found["B"].shape[1]:
            raise LuthierError(f"{folder}: the factors of {path} do not fit each other, or are no matrices.")
    _refuse_missing(folder, config, model, groups)
    scales = {path: _scale(folder, config, path, len(found["A"])) for path, found in groups.items()}
    form, ranks = _form(config, dora, {path: len(found["A"]) for path, found in groups.items()}, scales)
    for path, found in groups.items():
        if scales[path] != form.scale:
            found["B"] = found["B"] * (scales[path] / form.scale)
    return [Found(form, "affine", groups, ranks), *_trained_beside(folder, rest, model)]


def _form(
    config: Mapping[str, Any], dora: bool, ranks: dict[str, int], scales: dict[str, float]
) -> tuple[LoRA | DoRA, dict[str, int]]:
    """The form that most layers have: its own alpha where all have one scale, else one that the factors make up for."""
    more: dict[str, Any] = {} if dora else {"dropout": float(config.get("lora_dropout") or 0.0)}
    rank, cls = Counter(ranks.values()).most_common(1)[0][0], DoRA if dora else LoRA
    if len(set(scales.values())) == 1 and set(ranks.values()) == {rank} and scales[next(iter(scales))]:
        rule, alpha = ("rslora" if config.get("use_rslora") else "lora"), float(config["lora_alpha"])
        if math.isclose(rank_scale(alpha, rank, rule), next(iter(scales.values()))):
            return cls(rank=rank, alpha=alpha, scaling=rule, **more), {}
    scale = Counter(s for s in scales.values() if s).most_common(1)
    form = cls(rank=rank, alpha=rank * (scale[0][0] if scale else 1.0), **more)
    return form, ranks if set(ranks.values()) != {rank} else {}


def _scale(folder: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    told = _by_pattern(folder, config.get("rank_pattern"), path, config.get("r"))
    if told != rank:
        raise LuthierError(f"{folder}: {path} has rank {rank}, and the configuration says {told!r}.")
    alpha = _by_pattern(folder, config.get("alpha_pattern"), path, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise LuthierError(f"{folder}: lora_alpha is {alpha!r} at {path}; expected a finite number.")
    return rank_scale(float(alpha), rank, "rslora" if config.get("use_rslora") else "lora")


def _by_pattern(folder: Path, patterns: Any, path: str, otherwise: Any) -> Any:
    """The value of the first expression that matches the end of a path, as peft looks it up."""
    if not isinstance(patterns or {}, dict):
        raise LuthierError(f"{folder}: a pattern is {patterns!r}; expected a table of expressions.")
    found = (value for key, value in (patterns or {}).items() if _matches(folder, rf"(.*\.)?({key})$", path))
    return next(found, otherwise)


def _matches(folder: Path, pattern: str, path: str) -> bool:
    """`re.match`, for expressions whose time is bounded: no repeated groups, few repeats."""
    inner = pattern.removeprefix(r"(.*\.)?")
    if len(inner) > 20_000 or re.search(r"\)[*+{]", inner) or len(re.findall(r"(?<!\\)[*+{]", inner)) > 5:
        raise LuthierError(f"{folder}: the expression {inner[:60]!r} could take for ever to match; write plain names.")
    try:
        return re.match(pattern, path) is not None
    except re.error as error:
        raise LuthierError(f"{folder}: {inner[:60]!r} is no regular expression: {error}.") from None


def _grouped(tensors: Mapping[str, Tensor], ends: Mapping[str, str]) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """({path: {our name: tensor}}, the rest) of keys that end in one of `ends`."""
    groups: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        end = next((end for end in ends if key.endswith(f".{end}")), None)
        if end is None or not key.startswith(PREFIX):
            rest[key] = tensor
        else:
            groups.setdefault(key[len(PREFIX) : -len(end) - 1], {})[ends[end]] = tensor
    return groups, rest


def _refuse_missing(folder: Path, config: Mapping[str, Any], model: nn.Module, groups: Mapping[str, Any]) -> None:
    """Raises where a layer that the configuration names has no tensors: the file lost them."""
    wanted = config.get("target_modules")
    if not isinstance(wanted, list) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    saved = tuple(config.get("modules_to_save") or ())
    for path, module in model.named_modules():
        named = any(path == each or path.endswith(f".{each}") for each in wanted)
        if named and path not in groups and "weight" in module._parameters and not path.endswith(saved or ("\0",)):
            raise LuthierError(f"{folder} lacks the tensors of {path}, which its configuration names; it is damaged.")


def _trained_beside(folder: Path, rest: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """Parameters of the base that were trained themselves (heads, biases); copies of untouched ones are left out."""
    known, kept = dict(model.named_parameters(remove_duplicate=False)), {}
    untouched = dict(model.named_buffers())
    for key, tensor in rest.items():
        path = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        twin = known.get(path, untouched.get(path))
        if not key.startswith(PREFIX) or twin is None:
            raise LuthierError(f"{folder} holds {key}, which is neither a factor nor a parameter of this base.")
        if twin.shape == tensor.shape and torch.equal(twin.detach().to(tensor), tensor):
            continue
        if path not in known:
            raise LuthierError(f"{folder}: {path} is a buffer that training moved, and no form of ours holds one.")
        kept[path] = {"theta": tensor}
    return [Found(Full(), "param", kept)] if kept else []


def read_ia3(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """IA3: a column scales what leaves a layer, a row what enters it."""
    groups, rest = _grouped(tensors, {"ia3_l": "l"})
    _refuse_missing(folder, config, model, groups)
    sides: dict[str, dict[str, dict[str, Tensor]]] = {"affine": {}, "input": {}}
    for path, found in groups.items():
        vector = found["l"]
        if vector.dim() != 2 or 1 not in vector.shape:
            raise LuthierError(f"{folder}: ia3_l of {path} is {tuple(vector.shape)}; expected one row or one column.")
        sides["input" if vector.shape[0] == 1 else "affine"][path] = {"l": vector.flatten()}
    scaled = [Found(IA3(), kind, paths) for kind, paths in sides.items() if paths]
    return [*scaled, *_trained_beside(folder, rest, model)]


Reader = Callable[[Path, Mapping[str, Any], Mapping[str, Tensor], nn.Module], list[Found]]
READERS: Mapping[str, Reader] = {"LORA": read_lora, "IA3": read_ia3}
"""By `peft_type`."""
