"""Keys, settings and scales of peft's LORA, which other methods of peft share."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.form import rank_scale
from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import nearest, renamed
from luthier.core.sites.structure import lookup_scale, unfolded_features
from luthier.interop.formats import _peft_beside as beside
from luthier.interop.formats._factors import Pair, lora_of
from luthier.interop.formats._peft_config import merging, positions_of
from luthier.interop.formats._peft_experts import as_it_is_now, of_one_expert, on_all_experts, router, tell_of_peft
from luthier.interop.formats._peft_keys import FACTORS, divided
from luthier.interop.formats._peft_layers import check_layer, whole_factors
from luthier.interop.formats._peft_parameters import parameters_apart
from luthier.interop.formats._peft_targets import adapted, matches, refuse_missing
from luthier.methods.forms.bitfit import BitFit
from luthier.methods.forms.dora import DoRA
from luthier.methods.forms.lora import LoRA

Reader = Callable[[Path, Mapping[str, Any], Mapping[str, Tensor], nn.Module], list[Found]]


def read_lora(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LORA with rank and alpha patterns, rsLoRA and DoRA; parameters trained beside it become full ones."""
    if not any(divided(key, FACTORS)[1] for key in tensors):
        first = next((key for key in tensors if "lora" in key.lower()), next(iter(tensors), "nothing"))
        raise LuthierError(f"{folder} holds no factors: no name ends as lora_A.weight does (the first is {first}).")
    config, tensors = as_it_is_now(config, tensors, model)
    parameters, tensors = _parameters(folder, config, tensors, model)
    experts, tensors = _experts_apart(tensors, model)
    groups, rest = sorted_out(folder, config, tensors, FACTORS, model)
    rows = {path: found["rows"] for path, found in groups.items() if "rows" in found}
    groups = {path: found for path, found in groups.items() if path not in rows}
    dora, biased = bool(config.get("use_dora")), bool(config.get("lora_bias"))
    for path, found in groups.items():
        if set(found) != {"A", "B"} | ({"m"} if dora else set()) | ({"b"} if biased else set()):
            more = " and m" * dora + " and b (lora_bias)" * biased
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected A, B{more}.")
    biases = {path: found.pop("b") for path, found in groups.items() if biased}
    for path, found in groups.items():
        module = model.get_submodule(path)
        whole_factors(folder, config, found, module)
        check_layer(folder, path, found, module, dora, lambda: merging(tensors, model))
    told = stored_names(tensors, FACTORS, model)
    scales = {path: scale_of(folder, config, told[path], len(found["A"])) for path, found in groups.items()}
    apart = {path: groups.pop(path) for path in list(groups) if _apart(path, dora or biased, model)}
    elsewhere = {"DoRA": dora, "biases of layers (lora_bias)": biased, "layers that are not linear": apart}
    elsewhere |= {"parameters (target_parameters)": parameters, "single experts": experts}
    at = positions_of(folder, config, elsewhere)
    if groups:
        own = {path: scales[path] for path in groups}
        form, ranks = _form(config, dora, {path: len(found["A"]) for path, found in groups.items()}, own)
    else:
        form, ranks = LoRA(), {}
    form = replace(form, positions=at)
    tell_of_peft(folder, config, experts, groups, model)
    for path, found in groups.items():
        if (factor := _looked_up(path, model) * scales[path] / form.scale) != 1:
            found["B"] = found["B"] * factor
    return [
        *([Found(form, "affine", groups, ranks)] if groups else []),
        *lora_of(folder, {path: Pair(found["B"], found["A"], scales[path]) for path, found in apart.items()}, model),
        *lora_of(folder, parameters, model),
        *on_all_experts(folder, config, experts, lambda path, rank: scale_of(folder, config, path, rank), model),
        *_biases(folder, {path: scales[path] * bias for path, bias in biases.items()}, rest, dora, model),
        *beside.tokens(folder, rows, indices_of(folder, config, rows), model),
        *beside.whole_parameters(folder, config, rest, model),
    ]


def _apart(path: str, more: bool, model: nn.Module) -> bool:
    """Whether a path is a convolution, or a router with plain factors: no linear layer, and changed as a parameter."""
    return unfolded_features(model.get_submodule(path)) is not None or (not more and router(path, model))


def _parameters(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """(changes of what `target_parameters` names, the other tensors)."""
    if not config.get("target_parameters"):
        return {}, dict(tensors)
    groups, _ = _grouped(tensors, FACTORS)
    pairs = parameters_apart(folder, config, groups, lambda path, rank: scale_of(folder, config, path, rank), model)
    return pairs, {
        key: t for key, t in tensors.items() if (each := divided(key, FACTORS))[1] is None or each[0] in groups
    }


def _experts_apart(
    tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({path of one expert's layer: {our name: tensor}}, the other tensors)."""
    apart: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, end = divided(key, FACTORS)
        if end is not None and of_one_expert(path, model):
            apart.setdefault(path, {})[end] = tensor
        else:
            rest[key] = tensor
    return apart, rest


def _biases(
    folder: Path, biases: Mapping[str, Tensor], rest: dict[str, Tensor], dora: bool, model: nn.Module
) -> list[Found]:
    """`lora_bias`: s b is added to what leaves a layer, which is a change of its bias; to one that was trained itself
    (in `rest`) it is added there."""
    kept = {}
    for path, bias in biases.items():
        if dora or model.get_submodule(path)._parameters.get("bias") is None:
            raise LuthierError(
                f"{folder}: lora_bias adds a bias at {path}, "
                + ("where DoRA acts" if dora else "a layer without one")
                + ", and no form here does so. peft cannot merge it there either; run it with peft."
            )
        own = f"{path}.bias"
        if own in rest:
            rest[own] = rest[own] + bias
        else:
            kept[own] = {"delta": bias}
    return [Found(BitFit(), "param", kept)] if kept else []


def _looked_up(path: str, model: nn.Module) -> float:
    """What a table multiplies its rows by; 1 for other layers."""
    module = model.get_submodule(path)
    return lookup_scale(path, module) if isinstance(module, nn.Embedding) else 1.0


def indices_of(folder: Path, config: Mapping[str, Any], rows: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Returns the tokens whose rows were trained, by table."""
    told = config.get("trainable_token_indices") or []
    found = {}
    for path in rows:
        own = told
        if isinstance(told, dict):
            own = next((each for key, each in told.items() if path.endswith(key)), [])
        if not isinstance(own, list) or not all(type(each) is int for each in own):
            raise LuthierError(f"{folder}: trainable_token_indices is {told!r}; expected whole numbers for {path}.")
        found[path] = own
    return found


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


def scale_of(folder: Path, config: Mapping[str, Any], path: str, rank: int) -> float:
    told = by_pattern(folder, config.get("rank_pattern"), path, config.get("r"))
    if told != rank:
        raise LuthierError(f"{folder}: {path} has rank {rank}, and the configuration says {told!r}.")
    alpha = by_pattern(folder, config.get("alpha_pattern"), path, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise LuthierError(f"{folder}: lora_alpha is {alpha!r} at {path}; expected a finite number.")
    return rank_scale(float(alpha), rank, "rslora" if config.get("use_rslora") else "lora")


def by_pattern(folder: Path, patterns: Any, path: str, otherwise: Any) -> Any:
    """Returns the value of the first expression that matches the end of a path, as peft looks it up."""
    if not isinstance(patterns or {}, dict):
        raise LuthierError(f"{folder}: a pattern is {patterns!r}; expected a table of expressions.")
    found = (value for key, value in (patterns or {}).items() if matches(folder, rf"(.*\.)?({key})$", path))
    return next(found, otherwise)


def sorted_out(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], ends: Mapping[str, str], model: nn.Module
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Sorts into ({layer: {our name: tensor}}, {parameter: tensor}), by the model's own paths, as peft loads them.

    Keys end in one of `ends`, or name a parameter. Known layouts of names are mapped; raises for any other, with the
    nearest name, and where a layer that the configuration adapts has nothing.
    """
    groups, rest = _grouped(tensors, ends)
    names, lost = renamed([*groups, *rest], model)
    lost = [path for path in lost if path not in dict(model.named_buffers())]
    if lost:
        raise LuthierError(
            f"{folder} holds {'tensors of ' if lost[0] in groups else ''}{lost[0]}, which is neither a layer nor a "
            f"parameter of this {type(model).__name__}{nearest(lost[0], model)} It was fitted on another base, or its "
            "names are of a layout that is not known here" + _experts(lost[0])
        )
    held = {names[path]: found for path, found in groups.items()}
    beside_ = {names.get(path, path): tensor for path, tensor in rest.items()}
    told = {names[path]: path for path in groups}  # a configuration means the names that its file has
    out = [
        path
        for path, found in held.items()
        if not ("rows" in found or any(adapted(folder, config, each, model) for each in (told[path], path)))
    ]
    if out:
        warnings.warn(
            f"{folder} holds tensors of {len(out)} layers that its configuration leaves out (first {out[0]}); peft "
            "does not load them, and they are left out here.",
            stacklevel=2,
        )
    held = {path: found for path, found in held.items() if path not in out}
    refuse_missing(folder, config, model, {**held, **beside_}, names)
    return held, beside_


def _grouped(
    tensors: Mapping[str, Tensor], ends: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({path in the file: {our name: tensor}}, {path: a tensor whose key ends otherwise})."""
    groups: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, end = divided(key, ends)
        if end is None:
            rest[path] = tensor
        else:
            groups.setdefault(path, {})[end] = tensor
    return groups, rest


def stored_names(tensors: Mapping[str, Tensor], ends: Mapping[str, str], model: nn.Module) -> dict[str, str]:
    """Returns {the model's own path: the path in the file} of its layers, which patterns are written for."""
    names, _ = renamed({path for path, end in (divided(key, ends) for key in tensors) if end is not None}, model)
    return {own: path for path, own in names.items()}


def _experts(path: str) -> str:
    """What is to be said of the experts of transformers 4, each a module."""
    if not re.search(r"\.experts\.\d+\.", path):
        return "."
    return " (transformers 4 kept each expert as modules; 5 keeps those of a layer in one tensor)."
