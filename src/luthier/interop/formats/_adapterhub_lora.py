"""LoRA, DoRA and IA3 as AdapterHub's library stores them, and what its readers have in common."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features, weight_of
from luthier.interop.formats._factors import Pair, check_pair, lora_of, own_paths, scaled_biases
from luthier.methods.forms.dora import DoRA
from luthier.methods.forms.ia3 import IA3

Groups = dict[str, dict[str, Tensor]]
LORA = re.compile(r"(?P<path>.+)\.loras\.[^.]+\.(?P<end>lora_A|lora_B|m\.weight)")
VERA = re.compile(r"(?P<path>.+)\.loras\.[^.]+\.(?P<end>vera_D|vera_B)")
SHARED = re.compile(r"(?:.+\.)?shared_parameters\.[^.]+\.(?P<end>lora_A|lora_B)")
FUSED = ("q", "k", "v")
"""The order of GPT-2's fused layer."""


def grouped(folder: Path, held: Mapping[str, Tensor], pattern: re.Pattern[str]) -> Groups:
    """Returns {path in the file: {end: tensor}}; raises for a name of another kind."""
    found: Groups = {}
    for key, tensor in held.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise LuthierError(f"{folder} holds {key}, which its configuration does not explain; it is not read here.")
        found.setdefault(match["path"], {})[match["end"]] = tensor
    return found


def number(folder: Path, config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LuthierError(f"{folder}: {key} is {value!r}; expected a finite number.")
    return float(value)


def refuse(folder: Path, config: Mapping[str, Any], why: Mapping[str, str]) -> None:
    for key, reason in why.items():
        if config.get(key):
            raise LuthierError(f"{folder}: {key}={config[key]!r}: {reason}")


GATED = "a gate that each text opens by itself scales the change, and no form here has one."


def read_lora(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LoRA, VeRA and DoRA (`composition_mode` add), IA3 (scale)."""
    refuse(folder, config, {"use_gating": GATED})
    vera = any(isinstance(config.get(key), float) for key in ("vera_d", "vera_b"))
    groups = _vera(folder, held) if vera else grouped(folder, held, LORA)
    names = own_paths(folder, list(groups), model)
    own = {names[path]: found for path, found in groups.items()}
    alpha, matrices = number(folder, config, "alpha"), config.get("attn_matrices") or []
    if not isinstance(matrices, list) or not all(isinstance(each, str) for each in matrices):
        raise LuthierError(f"{folder}: attn_matrices is {matrices!r}; expected a list of q, k and v.")
    if config.get("composition_mode") == "scale":
        return _ia3(folder, own, alpha, matrices, model)
    rank = number(folder, config, "r")
    if rank < 1 or config.get("composition_mode", "add") != "add":
        raise LuthierError(f"{folder}: r is {rank:g} and composition_mode {config.get('composition_mode')!r}.")
    wanted = {"lora_A", "lora_B"} | ({"m.weight"} if config.get("use_dora") else set())
    for path, found in own.items():
        if set(found) != wanted:
            raise LuthierError(
                f"{folder}: {path} has {', '.join(sorted(found))}; expected {', '.join(sorted(wanted))}."
            )
    pairs = {path: _pair(folder, path, found, alpha / rank, matrices, model) for path, found in own.items()}
    if config.get("use_dora"):
        return _dora(folder, pairs, {path: found["m.weight"].flatten() for path, found in own.items()}, model)
    dropout = config.get("dropout", 0.0)
    usable = type(dropout) in (int, float) and 0 <= dropout < 1
    return lora_of(folder, pairs, model, float(dropout) if usable else 0.0)


def _vera(folder: Path, held: Mapping[str, Tensor]) -> Groups:
    """Factors of VeRA, multiplied: A = D A_shared, B = B_layer B_shared; D and B_layer are whole matrices there."""
    shared = {match["end"]: held[key] for key in held if (match := SHARED.fullmatch(key))}
    groups = grouped(folder, {key: tensor for key, tensor in held.items() if not SHARED.fullmatch(key)}, VERA)
    if set(shared) != {"lora_A", "lora_B"}:
        raise LuthierError(f"{folder} holds VeRA without its shared factors, which no configuration brings back.")
    for path, found in groups.items():
        if set(found) != {"vera_D", "vera_B"}:
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected vera_B, vera_D.")
        if (
            found["vera_D"].shape != (len(shared["lora_A"]),) * 2
            or found["vera_B"].shape != (len(shared["lora_B"]),) * 2
        ):
            raise LuthierError(f"{folder}: the tensors of {path} do not fit VeRA's shared factors.")
    return {
        path: {"lora_A": found["vera_D"] @ shared["lora_A"], "lora_B": found["vera_B"] @ shared["lora_B"]}
        for path, found in groups.items()
    }


def _pair(
    folder: Path, path: str, found: Mapping[str, Tensor], scale: float, matrices: Sequence[str], model: nn.Module
) -> Pair:
    """The factors of a layer; of GPT-2's fused one, those of q, k and v, each on its own rows."""
    a, b, parts = found["lora_A"], found["lora_B"], _parts(path, matrices, model)
    if a.dim() != 2 or b.dim() != 2:
        raise LuthierError(f"{folder}: the factors of {path} are no matrices.")
    if parts is None:
        return Pair(b, a, scale)
    count, rank = len(parts), b.shape[1]
    if not count or len(a) != count * rank or len(b) % count:
        raise LuthierError(f"{folder}: the factors of {path} are not those of {', '.join(matrices)}.")
    rows = len(b) // count
    whole = torch.zeros(3 * rows, len(a))
    for turn, place in enumerate(parts):
        mine = slice(turn * rank, (turn + 1) * rank)
        whole[place * rows : (place + 1) * rows, mine] = b[turn * rows : (turn + 1) * rows]
    return Pair(whole, a, scale)


def _parts(path: str, matrices: Sequence[str], model: nn.Module) -> list[int] | None:
    """Which thirds of a fused layer are adapted; None for a layer of one kind."""
    if not path.endswith("attn.c_attn") or type(model.get_submodule(path)).__name__ != "Conv1D":
        return None
    return [turn for turn, name in enumerate(FUSED) if name in matrices]


def _ia3(folder: Path, own: Groups, alpha: float, matrices: Sequence[str], model: nn.Module) -> list[Found]:
    """alpha · lora_B scales what leaves a layer; thirds of a fused layer that are not adapted are scaled by alpha."""
    tensors = {}
    for path, found in own.items():
        if set(found) != {"lora_B"}:
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected lora_B.")
        vector, parts = found["lora_B"].flatten(), _parts(path, matrices, model)
        if parts is not None:
            if not parts or len(vector) % len(parts):
                raise LuthierError(f"{folder}: the vector of {path} is not that of {', '.join(matrices)}.")
            whole = torch.ones(3, len(vector) // len(parts))
            whole[parts] = vector.view(len(parts), -1)
            vector = whole.flatten()
        tensors[path] = {"l": alpha * vector}
    return [Found(IA3(), "affine", tensors)]


def _dora(folder: Path, pairs: Mapping[str, Pair], lengths: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """y = m (W x + b + s B A x) / ‖W + B A‖: the norm without s, and the bias scaled too, as `adapters` runs it."""
    tensors, gains = {}, {}
    for path, pair in pairs.items():
        module = model.get_submodule(path)
        if type(module).__name__ == "Conv1D" or not features(module):
            raise LuthierError(
                f"{folder} adapts {path} by DoRA, where adapters 1.3 takes rows for columns; no form here does so."
            )
        check_pair(folder, path, pair)
        weight = weight_of(module).detach().float()
        if (len(pair.B), pair.A.shape[1]) != tuple(weight.shape) or lengths[path].shape != weight.shape[:1]:
            raise LuthierError(f"{folder}: the tensors of {path} do not fit its weight, {tuple(weight.shape)}.")
        gain = lengths[path] / vector_norm(weight + pair.B @ pair.A, dim=1)
        moved = vector_norm(weight + pair.scale * pair.B @ pair.A, dim=1)
        tensors[path] = {"A": pair.A, "B": pair.B, "m": gain * moved}
        gains[path] = gain
    biases = scaled_biases(model, gains)
    rank, scale = next((len(pair.A), pair.scale) for pair in pairs.values())
    if scale != 1 or biases:
        warnings.warn(
            f"{folder} holds DoRA. adapters 1.3 takes the norm without the scale alpha / r = {scale:g} and scales "
            "biases as well; what it runs is what was read, and not what it merges.",
            stacklevel=2,
        )
    return [Found(DoRA(rank=rank, alpha=rank * scale), "affine", tensors), *biases]
