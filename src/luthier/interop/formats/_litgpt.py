"""What LitGPT's files say: names, the fused layer, scales."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.sites.structure import features
from luthier.interop.formats._factors import Pair, check_pair, own_paths
from luthier.interop.formats._files import inside

KINDS = ("llama", "mistral", "qwen2")
"""Model types on which LitGPT was run."""
LAYERS = {
    **{"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj"},
    **{"mlp.proj": "mlp.down_proj"},
}
FUSED = {"lora_query": "q_proj", "lora_key": "k_proj", "lora_value": "v_proj"}
"""The layers of transformers, by setting and in the order of the fused layer."""
KEY = re.compile(r"(?:transformer\.h\.(?P<block>\d+)\.(?P<name>.+)|(?P<head>lm_head))\.lora_(?P<end>[AB])")


def config_of(folder: Path) -> dict[str, Any]:
    """The settings of a run; raises `LuthierError` for a file that is not a table."""
    import yaml

    path = inside(folder, "hyperparameters.yaml")
    with guarded(f"{path} cannot be read"):
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise LuthierError(f"{path} is not a table of settings.")
    return told


def dropout_of(config: Mapping[str, Any]) -> float:
    """The dropout, where it is a rate."""
    value = config.get("lora_dropout", 0.0)
    return float(value) if type(value) in (int, float) and 0 <= value < 1 else 0.0


def pairs_of(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> dict[str, Pair]:
    """Returns `{path: factors}`, the fused layer as its three."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in KINDS:
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
