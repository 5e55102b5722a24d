"""What mlx-lm's files hold: factors by the path of the layer, in a configuration's blocks and under its keys."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_parameters, block_lists
from luthier.interop.formats._factors import Pair, gate_and_up, lora_of, own_paths
from luthier.interop.formats._mlx_lm_contents import TYPES
from luthier.interop.formats._peft_beside import low_rank, whole_parameters
from luthier.methods.forms.dora import DoRA

ENDS = {"lora_a": "A", "lora_b": "B", "m": "m"}
EXPERTS = re.compile(r"(.+)\.(switch_mlp)\.(gate|up|down)_proj")
"""A layer of mlx-lm's stacked experts: transformers 5 keeps gates and up-projections as one parameter."""


def adapted(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LoRA or DoRA on what the configuration adapts."""
    _warn_of_other_layouts(folder, model)
    rank, scale, dropout = _numbers(folder, config)
    dora = config.get("fine_tune_type") == "dora"
    groups = _groups(folder, held)
    _check_adapted(folder, config, groups, model)
    for path, found in groups.items():
        if set(found) != {"A", "B"} | ({"m"} if dora else set()):
            raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected A, B{' and m' * dora}.")
    pairs = {path: _pair(folder, path, found, rank, scale) for path, found in groups.items()}
    if dora:
        return _dora(folder, pairs, {path: found["m"] for path, found in groups.items()}, model)
    pairs = _own(folder, pairs, model)
    return [*lora_of(folder, pairs, model, dropout), *_heads_of_tables(folder, pairs, model)]


def _warn_of_other_layouts(folder: Path, model: nn.Module) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in TYPES:
        warnings.warn(
            f"{folder}: names and layouts of mlx-lm's {kind} were never compared with those of transformers here "
            f"(compared are {', '.join(TYPES)}). Compare some answers before you rely on it.",
            stacklevel=2,
        )


def _numbers(folder: Path, config: Mapping[str, Any]) -> tuple[int, float, float]:
    """(rank, scale, dropout)."""
    told = config.get("lora_parameters")
    if not isinstance(told, dict):
        raise LuthierError(f"{folder}: lora_parameters is {told!r}; expected rank, scale and dropout.")
    rank, scale, dropout = told.get("rank"), told.get("scale"), told.get("dropout", 0.0)
    if type(rank) is not int or rank < 1:
        raise LuthierError(f"{folder}: the rank is {rank!r}; expected a whole number of at least 1.")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise LuthierError(f"{folder}: the scale is {scale!r}; expected a finite number.")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise LuthierError(f"{folder}: the dropout is {dropout!r}; expected a rate of at least 0 and below 1.")
    return rank, float(scale), float(dropout)


def _groups(folder: Path, held: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{path in the file: {our name: tensor}}"""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        path, _, end = key.rpartition(".")
        if end not in ENDS or not path:
            raise LuthierError(f"{folder} holds {key}; expected names that end in lora_a, lora_b or m.")
        groups.setdefault(path, {})[ENDS[end]] = tensor
    if not groups:
        raise LuthierError(f"{folder / 'adapters.safetensors'} holds no tensors.")
    return groups


def _check_adapted(folder: Path, config: Mapping[str, Any], groups: Mapping[str, Any], model: nn.Module) -> None:
    """Raises for a layer that the configuration leaves out: mlx-lm refuses such a file (before 0.30 it dropped it)."""
    count = max((len(blocks) for blocks in block_lists(model).values()), default=0)
    last, keys = config.get("num_layers", 16), config["lora_parameters"].get("keys")
    if type(last) is not int or not (keys is None or (isinstance(keys, list) and all(type(k) is str for k in keys))):
        raise LuthierError(f"{folder}: num_layers is {last!r} and keys are {keys!r}; expected a number and a list.")
    first = count - last if last > 0 else 0
    for path in groups:
        inside = re.search(r"\.(\d+)\.(.+)$", path)
        chosen = inside is not None and int(inside[1]) >= first and (keys is None or inside[2] in keys)
        if not chosen and path not in (keys or ()):
            raise LuthierError(
                f"{folder} holds tensors of {path}, which its configuration does not adapt (num_layers={last}"
                + (f", keys={keys}" if keys else "")
                + "). mlx-lm 0.32 does not load such a file either; correct adapter_config.json."
            )


def _pair(folder: Path, path: str, found: Mapping[str, Tensor], rank: int, scale: float) -> Pair:
    """Factors as ours: those of layers are transposed, those of experts ([E, r, d_in], [E, d_out, r]) are not."""
    a, b = (found[key] if found[key].dim() == 3 else found[key].mT for key in "AB")
    if a.dim() < 2 or a.shape[-2] != rank or b.shape[-1] != rank:
        raise LuthierError(
            f"{folder}: the factors of {path} are {tuple(found['A'].shape)} and {tuple(found['B'].shape)}, and the "
            f"configuration says rank {rank}."
        )
    return Pair(b, a, scale)


def _own(folder: Path, pairs: Mapping[str, Pair], model: nn.Module) -> dict[str, Pair]:
    """By the model's own paths, with gates and up-projections of experts as one."""
    plain, experts = {}, {}
    for path, pair in pairs.items():
        match = EXPERTS.fullmatch(path)
        if match is None:
            plain[path] = pair
        else:
            experts.setdefault(match[1], {})[match[3]] = pair
    for layer, parts in experts.items():
        if {"gate", "up"} & set(parts):
            pair = gate_and_up(folder, layer, parts.get("gate"), parts.get("up"))
            plain[f"{layer}.experts.gate_up_proj"] = pair
        if "down" in parts:
            plain[f"{layer}.experts.down_proj"] = parts["down"]
    return _by_own_paths(folder, plain, model)


def _by_own_paths(folder: Path, pairs: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    theirs = {path: _to_transformers(path, kind) for path in pairs}
    names = own_paths(folder, list(theirs.values()), model)
    return {names[theirs[path]]: pair for path, pair in pairs.items()}


def _to_transformers(path: str, kind: str) -> str:
    for own, other in TYPES.get(kind, ()):
        path = path.replace(other, own)
    return path


def _heads_of_tables(folder: Path, pairs: Mapping[str, Pair], model: nn.Module) -> list[Found]:
    """The change of a head that reads a tied table: mlx-lm changes both."""
    known = dict(base_parameters(model, remove_duplicate=False))
    found = []
    for path, pair in pairs.items():
        table = known.get(f"{path}.weight")
        if table is None or not isinstance(model.get_submodule(path), nn.Embedding):
            continue
        counterparts = [name.removesuffix(".weight") for name, each in known.items() if each is table]
        found += [
            low_rank(folder, model, counterpart, pair.scale * pair.A.mT, pair.B.mT)
            for counterpart in counterparts
            if counterpart != path
        ]
    return found


def _dora(folder: Path, pairs: Mapping[str, Pair], lengths: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    own = _by_own_paths(folder, {path: (pair, lengths[path]) for path, pair in pairs.items()}, model)
    for path in own:
        if isinstance(model.get_submodule(path), nn.Embedding):
            raise LuthierError(
                f"{folder} adapts the table {path} by DoRA, which has no equal here. Fuse it (mlx_lm.fuse)."
            )
    rank, scale = next((pair.A.shape[-2], pair.scale) for pair in pairs.values())
    tensors = {path: {"A": pair.A.contiguous(), "B": pair.B.contiguous(), "m": m} for path, (pair, m) in own.items()}
    return [Found(DoRA(rank=rank, alpha=rank * scale), "affine", tensors)]


def trained_whole(folder: Path, held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """Parameters that were trained themselves; GPT-2's layers are stored transposed in transformers."""
    _warn_of_other_layouts(folder, model)
    stacked = next((key for key in held if ".switch_mlp." in key), None)
    if stacked is not None:
        raise LuthierError(f"{folder} holds experts that were trained whole ({stacked}), which is not read here.")
    own = _by_own_paths(folder, held, model)
    turned = {path: tensor.mT if _transposed(model, path) else tensor for path, tensor in own.items()}
    return whole_parameters(folder, {}, turned, model, tied=True)


def _transposed(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return name == "weight" and type(model.get_submodule(owner)).__name__ == "Conv1D"
