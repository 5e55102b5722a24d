"""What peft trains beside an adapter: whole parameters, single tokens, and how tied ones go together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_parameters, features, lookup_scale, raw_parameter
from luthier.interop.formats._peft_targets import saved_whole
from luthier.methods.forms.full import Full
from luthier.methods.forms.lora import LoRA


def whole_parameters(
    folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """Parameters that were trained themselves (heads, biases, tables), given by path; untouched ones are left out.

    peft's copy of one module (`modules_to_save`) serves there alone, though the base ties it to another: such a copy
    becomes a change of that module's own reading. One tensor under all names, or one that peft keeps tied
    (`ensure_weight_tying`) or writes into the base itself, moves them all.
    """
    known = dict(base_parameters(model, remove_duplicate=False))
    found: dict[str, Tensor] = {}
    apart: list[Found] = []
    for path, tensor in held.items():
        if path not in known:
            _refuse_moved_buffer(folder, path, tensor, model)
            continue
        names = [name for name, counterpart in known.items() if counterpart is known[path]]
        given = {name: held[name] for name in names if name in held}
        if _together(config, names, given):
            found[names[0]] = tensor
        elif _moved(known[path], tensor):
            apart.append(_alone(folder, model, path, tensor))
    kept = {path: {"theta": tensor} for path, tensor in found.items() if _moved(known[path], tensor)}
    return [*apart, *([Found(Full(), "param", kept)] if kept else [])]


def _moved(counterpart: Tensor, tensor: Tensor) -> bool:
    return counterpart.shape != tensor.shape or not torch.equal(counterpart.detach().to(tensor), tensor)


def _refuse_moved_buffer(folder: Path, path: str, tensor: Tensor, model: nn.Module) -> None:
    counterpart = dict(model.named_buffers())[path]
    if _moved(counterpart, tensor):
        raise LuthierError(f"{folder}: {path} is a buffer that training moved, and no form of ours holds one.")


def _together(config: Mapping[str, Any], names: list[str], given: Mapping[str, Tensor]) -> bool:
    first, *others = given.values()
    if len(names) == 1 or config.get("ensure_weight_tying"):
        return True
    same = all(first.shape == other.shape and torch.equal(first, other) for other in others)
    return same and (len(given) == len(names) or not any(saved_whole(config, name) for name in given))


def _alone(folder: Path, model: nn.Module, path: str, tensor: Tensor) -> Found:
    """The whole change of a tied table or head at one of its places, as a LoRA of full rank."""
    base = raw_parameter(model, path).detach()
    if base.shape != tensor.shape:
        raise LuthierError(f"{folder}: {path} is {tuple(tensor.shape)}; this base has {tuple(base.shape)}.")
    change = tensor - base.to(tensor)
    return low_rank(folder, model, path.removesuffix(".weight"), change, torch.eye(tensor.shape[1]))


def low_rank(folder: Path, model: nn.Module, path: str, left: Tensor, right: Tensor) -> Found:
    """Returns the change left [rows, r] · right [r, width] of a table or of a linear layer, at that module alone."""
    module, rank = model.get_submodule(path), len(right)
    form = LoRA(rank=rank, alpha=float(rank))
    if isinstance(module, nn.Embedding):
        scale = lookup_scale(path, module)
        return Found(form, "affine", {path: {"A": left.mT.contiguous(), "B": scale * right.mT.contiguous()}})
    if not features(module):
        raise LuthierError(
            f"{folder}: {path} is tied to another module and was trained alone; no form of ours does so."
        )
    return Found(form, "affine", {path: {"A": right.contiguous(), "B": left.contiguous()}})


def tokens(folder: Path, rows: Mapping[str, Tensor], indices: Mapping[str, list[int]], model: nn.Module) -> list[Found]:
    """Tables of which some rows were trained (`trainable_token_indices`); a tied head reads the same rows."""
    found = []
    known = dict(base_parameters(model, remove_duplicate=False))
    for path, held in rows.items():
        where = indices[path]
        table = known.get(f"{path}.weight")
        if table is None or held.dim() != 2 or held.shape != (len(where), table.shape[-1]):
            raise LuthierError(
                f"{folder}: the trained tokens of {path} are {tuple(held.shape)}; expected one row each."
            )
        if not all(0 <= each < len(table) for each in where):
            raise LuthierError(f"{folder} trains token {max(where)}, and {path} has {len(table)}; enlarge it first.")
        spots = torch.zeros(len(table), len(where))
        spots[where, range(len(where))] = 1.0
        tied = [name for name, counterpart in known.items() if counterpart is table]
        if len({name.removesuffix(".weight") for name in tied} & set(rows)) > 1:
            raise LuthierError(f"{folder} trains tokens of {' and of '.join(tied)} apart, which are one tensor here.")
        change = held - table.detach()[where].to(held)
        found += [low_rank(folder, model, name.removesuffix(".weight"), spots, change) for name in tied]
    return found
