"""What LitGPT's files say: names, the fused layer, scales."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import yaml_text
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.sites.structure import features
from luthier.interop.formats._factors import Pair, check_pair, own_paths
from luthier.interop.formats._files import inside
from luthier.interop.formats._layers import Factoring, Layer, filled, nothing

KINDS = ("llama", "mistral", "qwen2")
"""Model types on which LitGPT was run."""
LAYERS = {
    **{"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj"},
    **{"mlp.proj": "mlp.down_proj"},
}
FUSED = {"lora_query": "q_proj", "lora_key": "k_proj", "lora_value": "v_proj"}
"""The layers of transformers, by setting and in the order of the fused layer."""
SETTINGS = {
    **{f"self_attn.{name}": setting for setting, name in FUSED.items()},
    **{"self_attn.o_proj": "lora_projection", "lm_head": "lora_head"},
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), "lora_mlp"),
}
"""The setting that adapts a layer, in every block."""
KEY = re.compile(r"(?:transformer\.h\.(?P<block>\d+)\.(?P<name>.+)|(?P<head>lm_head))\.lora_(?P<end>[AB])")


def config_of(folder: Path) -> dict[str, Any]:
    """The settings of a run; raises `LuthierError` for a file that is not a table."""
    path = inside(folder, "hyperparameters.yaml")
    with guarded(f"{path} cannot be read"):
        told = yaml_text.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise LuthierError(f"{path} is not a table of settings.")
    return told


def dropout_of(config: Mapping[str, Any]) -> float:
    """The dropout, where it is a rate."""
    value = config.get("lora_dropout", 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value < 1 else 0.0


def kind_of(model: nn.Module) -> str:
    """The model type of a base; raises `LuthierError` for one that LitGPT was not run on, or that it cannot be."""
    kind = _type_of(model)
    if kind not in KINDS or not type(model).__name__.endswith("ForCausalLM"):
        raise LuthierError(
            f"{type(model).__name__} ({kind}) is none of the models on which LitGPT was run: language models of type "
            f"{', '.join(KINDS)}. Export it merged (--to merged)."
        )
    return kind


def _type_of(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "model_type", type(model).__name__)


def pairs_of(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> dict[str, Pair]:
    """Returns `{path: factors}`, the fused layer as its three."""
    if (kind := _type_of(model)) not in KINDS:
        raise LuthierError(f"{folder} is read for the models on which LitGPT was run ({', '.join(KINDS)}), not {kind}.")
    rank, alpha = (_number(folder, config, key) for key in ("lora_r", "lora_alpha"))
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in held.items():
        match = KEY.fullmatch(key)
        if match is None or (match["name"] not in (*LAYERS, "attn.qkv") and not match["head"]):
            raise LuthierError(f"{folder} holds {key}, which is not a factor of a layer that is known here.")
        groups.setdefault((match["block"] or "", match["name"] or ""), {})[match["end"]] = tensor
    found: dict[str, Pair] = {}
    for (block, name), factors in groups.items():
        if set(factors) != {"A", "B"} or any(tensor.dim() != 2 for tensor in factors.values()):
            raise LuthierError(f"{folder}: {name or 'lm_head'} of block {block or '-'} lacks one of its two matrices.")
        pair = Pair(factors["B"], factors["A"], alpha / rank)
        if name == "attn.qkv":
            found |= _apart(folder, config, f"model.layers.{block}.self_attn", pair, int(rank), model)
        else:
            found[f"model.layers.{block}.{LAYERS[name]}" if name else "lm_head"] = pair
    for path, pair in found.items():
        check_pair(folder, path, pair)
        if len(pair.A) != rank:
            raise LuthierError(f"{folder}: {path} has rank {len(pair.A)}, and its settings say {rank:g}.")
    names = own_paths(folder, list(found), model)
    return {names[path]: pair for path, pair in found.items()}


def _number(folder: Path, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise LuthierError(f"{folder}: {key} is {value!r}; expected a number above 0.")
    return float(value)


def _apart(
    folder: Path, config: Mapping[str, Any], owner: str, pair: Pair, rank: int, model: nn.Module
) -> dict[str, Pair]:
    """The factors of a fused layer as those of q, k and v, as far as they are adapted."""
    names = [f"{owner}.{name}" for setting, name in FUSED.items() if config.get(setting) is True]
    own = own_paths(folder, names, model)
    rows = [(features(model.get_submodule(own[name])) or (0, 0))[1] for name in names]
    if len(pair.A) != rank * len(names) or len(pair.B) != sum(rows):
        raise LuthierError(
            f"{folder}: the factors of {owner} are {tuple(pair.A.shape)} and {tuple(pair.B.shape)}, which are not "
            f"those of {', '.join(name.rpartition('.')[2] for name in names) or 'nothing'} at rank {rank}."
        )
    return {
        name: Pair(b, a, pair.scale) for name, a, b in zip(names, pair.A.split(rank), pair.B.split(rows), strict=True)
    }


def contents(
    model: nn.Module, layers: Sequence[Layer], factoring: Factoring
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors by their names in LitGPT, the settings). It adapts the same layers in every block, and all three
    of an MLP: what is not there is filled up, which changes nothing."""
    kind_of(model)
    held = {layer.path: layer for layer in layers}
    wanted = _settings(model, held)
    parts = {path: factoring(layer) for path, layer in held.items()}
    rank = max(len(a) for _, a in parts.values())

    def part(path: str) -> tuple[Tensor, Tensor]:
        return filled(*(parts[path] if path in parts else nothing(model.get_submodule(path))), rank)

    tensors: dict[str, Tensor] = {}
    for block in range(model.config.num_hidden_layers):  # type: ignore[union-attr]
        own, theirs = f"model.layers.{block}", f"transformer.h.{block}"
        if fused := [part(f"{own}.self_attn.{name}") for setting, name in FUSED.items() if setting in wanted]:
            tensors[f"{theirs}.attn.qkv.lora_A"] = torch.cat([a for _, a in fused])
            tensors[f"{theirs}.attn.qkv.lora_B"] = torch.cat([b for b, _ in fused])
        for name, path in LAYERS.items():
            if SETTINGS[path] in wanted:
                b, a = part(f"{own}.{path}")
                tensors |= {f"{theirs}.{name}.lora_A": a, f"{theirs}.{name}.lora_B": b}
    if "lora_head" in wanted:
        b, a = part("lm_head")
        tensors |= {"lm_head.lora_A": a, "lm_head.lora_B": b}
    return tensors, {"lora_r": rank, "lora_alpha": rank, "lora_dropout": 0.0} | {
        setting: setting in wanted for setting in dict.fromkeys(SETTINGS.values())
    }


def _settings(model: Any, paths: Mapping[str, Layer]) -> set[str]:
    """The settings that adapt all these layers."""
    found = set()
    for path in paths:
        setting = SETTINGS.get(re.sub(r"^model\.layers\.\d+\.", "", path))
        if setting is None:
            raise LuthierError(
                f"LitGPT has no place for a change of {path}; it adapts {', '.join(SETTINGS)}. Export it merged "
                "instead (--to merged)."
            )
        if path == "lm_head" and model.config.tie_word_embeddings:
            raise LuthierError(
                "lm_head is tied to the table; LitGPT adapts a head alone, and here the table would change with it. "
                "Export it merged (--to merged)."
            )
        found.add(setting)
    return found
