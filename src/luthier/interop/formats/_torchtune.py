"""What torchtune's files hold and are to hold: names, rows and magnitudes."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.linalg import vector_norm

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import weight_of
from luthier.interop.formats._factors import Pair, check_pair, lora_of, own_paths, scaled_biases
from luthier.interop.formats._layers import Factoring, Layer, dora_parts, filled, is_dora, nothing
from luthier.interop.formats._rotary import halved, paired, rotated_heads
from luthier.methods.forms.dora import DoRA

KINDS: Mapping[str, bool] = {"llama": True, "mistral": True, "qwen2": False}
"""Whether torchtune rotates neighbours, by model type, where it was run."""
ATTENTION = {f"self_attn.{name}_proj": f"attn.{name}_proj" for name in "qkv"} | {"self_attn.o_proj": "attn.output_proj"}
MLP = {"mlp.gate_proj": "mlp.w1", "mlp.down_proj": "mlp.w2", "mlp.up_proj": "mlp.w3"}
NAMES = ATTENTION | MLP
"""Layers of a block: {transformers' name: torchtune's}."""
KEY = re.compile(r"(?P<path>.+)\.(?P<end>lora_a\.weight|lora_b\.weight|magnitude)")
ENDS = {"lora_a.weight": "A", "lora_b.weight": "B", "magnitude": "m"}
BLOCK = "model.layers."


def kind_of(model: nn.Module) -> str:
    """The model type of a base; raises `LuthierError` for one that torchtune was not run on."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in KINDS or not type(model).__name__.endswith("ForCausalLM"):
        raise LuthierError(
            f"{type(model).__name__} ({kind}) is none of the models on which torchtune was run: language models of "
            f"type {', '.join(KINDS)}. Export it merged (--to merged)."
        )
    return kind


def read(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LoRA or DoRA, as torchtune runs it: the bias of a layer is scaled with its magnitude."""
    kind_of(model)
    rank, alpha = (_number(folder, config, key) for key in ("r", "lora_alpha"))
    groups = _by_own_paths(folder, _groups(folder, held), model)
    dora = any("m" in found for found in groups.values())
    for path, found in groups.items():
        if set(found) != {"A", "B"} | ({"m"} if dora else set()):
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected A, B{' and m' * dora}.")
        check_pair(folder, path, Pair(found["B"], found["A"]))
        if len(found["A"]) != rank:
            raise LuthierError(f"{folder}: {path} has rank {len(found['A'])}, and the configuration says {rank:g}.")
    turned = {path: {k: _own(folder, path, k, t, model) for k, t in found.items()} for path, found in groups.items()}
    _tell_of_the_other_file(folder, model, dora)
    if dora:
        return _dora(folder, turned, alpha / rank, model)
    return lora_of(folder, {path: Pair(found["B"], found["A"], alpha / rank) for path, found in turned.items()}, model)


def _number(folder: Path, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise LuthierError(f"{folder}: {key} is {value!r}; expected a number above 0.")
    return float(value)


def _groups(folder: Path, held: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise LuthierError(f"{folder} holds {key}; expected names that end in {', '.join(ENDS)}.")
        groups.setdefault(match["path"], {})[ENDS[match["end"]]] = tensor
    if not groups:
        raise LuthierError(f"{folder} holds no tensors to import.")
    return groups


def _by_own_paths(folder: Path, groups: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    back = {theirs: own for own, theirs in NAMES.items()}
    paths = {}
    for path in groups:
        inside = re.fullmatch(r"layers\.(\d+)\.(.+)", path)
        if path == "output":
            paths[path] = "lm_head"
        elif inside is not None and inside[2] in back:
            paths[path] = f"{BLOCK}{inside[1]}.{back[inside[2]]}"
        else:
            raise LuthierError(f"{folder} adapts {path}, which is not a layer that torchtune has for these models.")
    names = own_paths(folder, list(paths.values()), model)
    return {names[paths[path]]: found for path, found in groups.items()}


def _heads(path: str, model: Any) -> int | None:
    """How many heads the rows of a layer belong to, where torchtune has them as neighbours."""
    return rotated_heads(f"{path}.weight", model.config) if KINDS[model.config.model_type] else None


def _own(folder: Path, path: str, key: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """A factor or magnitude with the rows of transformers."""
    heads = _heads(path, model)
    if key == "A" or heads is None:
        return tensor
    if tensor.shape[0] % (2 * heads):
        raise LuthierError(f"{folder}: {key} of {path} has {tensor.shape[0]} rows, not those of {heads} heads.")
    return halved(tensor, heads)


def _tell_of_the_other_file(folder: Path, model: nn.Module, dora: bool) -> None:
    wrong = [
        *(["without use_dora, and its magnitudes of q and k in another order of rows"] if dora else []),
        *(["with the rows of q and k turned, which Qwen2 never had turned"] if not KINDS[kind_of(model)] else []),
    ]
    if wrong and (folder / "adapter_model.safetensors").is_file():
        warnings.warn(
            f"{folder}: torchtune 0.6.1 wrote adapter_model.safetensors for peft {' and '.join(wrong)}; peft does not "
            "answer with it as torchtune does. What torchtune trained, adapter_model.pt, was read.",
            stacklevel=2,
        )


def _dora(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], scale: float, model: nn.Module) -> list[Found]:
    gains = {}
    for path, found in groups.items():
        weight = weight_of(model.get_submodule(path)).detach().float()
        if (len(found["B"]), found["A"].shape[1]) != tuple(weight.shape) or found["m"].shape != weight.shape[:1]:
            raise LuthierError(f"{folder}: the tensors of {path} do not fit its weight, {tuple(weight.shape)}.")
        gains[path] = found["m"] / vector_norm(weight + scale * found["B"] @ found["A"], dim=1)
    rank = len(next(iter(groups.values()))["A"])
    tensors = {path: {key: t.contiguous() for key, t in found.items()} for path, found in groups.items()}
    return [Found(DoRA(rank=rank, alpha=rank * scale), "affine", tensors), *scaled_biases(model, gains)]


def contents(
    model: nn.Module, layers: Sequence[Layer], factoring: Factoring, *, truncate: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors by their names in torchtune, the configuration)."""
    kind_of(model)
    held = {layer.path: layer for layer in layers}
    paths = _all_places(model, held)
    dora = not truncate and all(is_dora(layer) for layer in layers)
    if dora:
        _refuse_biases(layers)
    parts = {path: dora_parts(layer) if dora else factoring(layer) for path, layer in held.items()}
    rank = max(len(found[1]) for found in parts.values())
    tensors = {}
    for path, theirs in paths.items():
        module, heads = model.get_submodule(path), _heads(path, model)
        b, a = filled(*(parts[path][:2] if path in parts else nothing(module)), rank)
        tensors |= {f"{theirs}.lora_a.weight": a, f"{theirs}.lora_b.weight": paired(b, heads) if heads else b}
        if dora:
            m = parts[path][2] if path in parts else vector_norm(weight_of(module).detach().float(), dim=1)  # type: ignore[misc]
            tensors[f"{theirs}.magnitude"] = paired(m, heads) if heads else m
    ends = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ends, "use_dora": dora}
    return tensors, config


def _all_places(model: Any, held: Mapping[str, Layer]) -> dict[str, str]:
    """`{path: torchtune's}` of all layers that torchtune adapts where it adapts these."""
    inside = {path: re.sub(r"^model\.layers\.\d+\.", "", path) for path in held}
    for path, name in inside.items():
        if path != "lm_head" and (name not in NAMES or not path.startswith(BLOCK)):
            raise LuthierError(
                f"torchtune has no place for a change of {path}; it adapts {', '.join(NAMES)} and lm_head. Export it "
                "merged instead (--to merged)."
            )
        if path == "lm_head" and model.config.tie_word_embeddings:
            raise LuthierError("lm_head is tied to the table, and torchtune adapts no tied head; export it merged.")
    wanted = [name for name in ATTENTION if name in inside.values()] or ["self_attn.q_proj"]  # it wants one at least
    wanted += list(MLP) if set(MLP) & set(inside.values()) else []
    blocks = range(model.config.num_hidden_layers)
    paths = {f"{BLOCK}{block}.{name}": f"layers.{block}.{NAMES[name]}" for block in blocks for name in wanted}
    return paths | ({"lm_head": "output"} if "lm_head" in held else {})


def _refuse_biases(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if layer.module._parameters.get("bias") is not None:
            raise LuthierError(
                f"{layer.path} has a bias, and torchtune's DoRA scales it with the weight, as ours does not; give a "
                "rank (--rank) for a truncated LoRA, or export it merged (--to merged)."
            )
