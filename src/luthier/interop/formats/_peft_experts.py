"""Adapters of single experts, as peft wrote them over transformers 4, on the parameter that transformers 5 keeps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_parameters, features
from luthier.interop.formats._factors import Pair, check_pair, gate_and_up, lora_of, own_paths
from luthier.interop.formats._peft_targets import targeted

EXPERT = re.compile(r"(?P<layer>.+)\.experts\.(?P<number>\d+)\.(?P<part>w1|w2|w3|gate_proj|up_proj|down_proj)")
PARTS = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}
MIXTRAL = "block_sparse_moe"
"""Where Mixtral's experts and router stood in transformers 4; in 5 it is mlp."""
Scale = Callable[[str, int], float]
CONVERTED = ("mixtral", "qwen3_moe", "deepseek_v3", "glm4_moe")
"""Types of models whose adapters of single experts were seen to be converted by peft 0.21.2 over transformers 5."""


def as_it_is_now(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors with Mixtral's blocks under their present name, where the base has that."""
    if any(f".{MIXTRAL}" in name for name, _ in model.named_modules()):
        return dict(config), dict(tensors)
    return _renamed(dict(config)), {key.replace(f".{MIXTRAL}.", ".mlp."): tensor for key, tensor in tensors.items()}


def _renamed(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace(MIXTRAL, "mlp")
    if isinstance(value, dict):
        return {_renamed(key): _renamed(each) for key, each in value.items()}
    return [_renamed(each) for each in value] if isinstance(value, list) else value


def of_one_expert(path: str, model: nn.Module) -> bool:
    """Whether a path is a layer of one expert, and the base keeps those of a layer in one parameter."""
    return EXPERT.fullmatch(path) is not None and any(
        name.endswith(".experts.gate_up_proj") for name, _ in base_parameters(model)
    )


def on_all_experts(
    folder: Path, config: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]], scale: Scale, model: nn.Module
) -> list[Found]:
    """LoRA on the stacked parameters: A [E, r, d_in], B [E, d_out, r], experts that were left out at zero.

    `scale` gives that of a path at a rank, by the configuration's own patterns (rsLoRA's included).
    """
    known = {path for path in groups if targeted(folder, config, path)}
    if left := [path for path in groups if path not in known]:
        warnings.warn(
            f"{folder} holds tensors of {len(left)} layers of experts that its configuration leaves out (first "
            f"{left[0]}); peft does not load them, and they are left out here.",
            stacklevel=2,
        )
    layers: dict[str, dict[str, dict[int, Pair]]] = {}
    for path in known:
        match = EXPERT.fullmatch(path)
        assert match is not None
        parts = layers.setdefault(match["layer"], {}).setdefault(PARTS[match["part"]], {})
        parts[int(match["number"])] = _pair(folder, path, groups[path], scale)
    pairs: dict[str, Pair] = {}
    for layer, parts in layers.items():
        ends = [f"{layer}.experts.gate_up_proj", f"{layer}.experts.down_proj"]
        both, down = own_paths(folder, ends, model).values()
        stacks = {part: _stacked(folder, layer, numbered, both, model) for part, numbered in parts.items()}
        if {"gate", "up"} & set(stacks):
            pairs[both] = gate_and_up(folder, layer, stacks.get("gate"), stacks.get("up"))
        if "down" in stacks:
            pairs[down] = stacks["down"]
    return lora_of(folder, pairs, model)


def tell_of_peft(
    folder: Path, config: Mapping[str, Any], experts: Iterable[str], others: Iterable[str], model: nn.Module
) -> None:
    """Warns of what peft makes of single experts over transformers 5 (findings/peft_adapters_of_single_experts.sh).

    `experts` are the paths of their layers, `others` those of the layers beside them.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    ends = {path.rpartition(".")[2] for path in experts}
    fused = ends & {"w1", "w3", "gate_proj", "up_proj"}
    told = ["leaves the routed experts out"] if ends and kind == "qwen2_moe" else []
    if kind in CONVERTED and len(fused) != 1:  # of one of the two alone, peft raises
        if fused and config.get("use_rslora"):
            told.append("makes the change of gates and up-projections (gate_up_proj) 1.41 times too strong")
        if left := [path for path in others if path.rpartition(".")[2] in ends]:
            told.append(f"leaves out {len(left)} layers beside the routed experts (first {left[0]})")
    if told:
        warnings.warn(
            f"{folder}: over transformers 5, peft 0.21.2 {' and '.join(told)}. It comes in as it was trained.",
            stacklevel=2,
        )


def _pair(folder: Path, path: str, found: Mapping[str, Tensor], scale: Scale) -> Pair:
    if set(found) != {"A", "B"}:
        raise LuthierError(
            f"{folder}: {path} has {', '.join(sorted(found))}; of experts, plain factors (A, B) alone are read."
        )
    pair = Pair(found["B"], found["A"])
    check_pair(folder, path, pair)
    return Pair(pair.B, pair.A, scale(path, len(pair.A)))


def _stacked(folder: Path, layer: str, numbered: Mapping[int, Pair], path: str, model: nn.Module) -> Pair:
    count = len(dict(base_parameters(model))[path])
    if max(numbered) >= count:
        raise LuthierError(f"{folder} adapts expert {max(numbered)} of {layer}, and this base has {count}.")
    first = next(iter(numbered.values()))
    rank = max(len(pair.A) for pair in numbered.values())
    if len({(pair.A.shape[1], len(pair.B)) for pair in numbered.values()}) > 1:
        raise LuthierError(f"{folder}: the experts of {layer} differ in shape.")
    a = torch.zeros(count, rank, first.A.shape[1])
    b = torch.zeros(count, len(first.B), rank)
    for number, pair in numbered.items():
        a[number] = pad(pair.A, (0, 0, 0, rank - len(pair.A)))
        b[number] = pad(pair.scale * pair.B, (0, rank - pair.B.shape[1]))
    return Pair(b, a)


def router(path: str, model: nn.Module) -> bool:
    """Whether a path is a router, which transformers 5 keeps as a bare matrix and 4 kept as a linear layer."""
    module = model.get_submodule(path)
    weight = module._parameters.get("weight")
    plain = not features(module) and not isinstance(module, nn.Embedding)
    return plain and weight is not None and weight.dim() == 2
