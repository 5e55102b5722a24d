"""What peft trains beside an adapter: whole parameters, single tokens, and how tied ones go together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import run_once
from luthier.core.sites.structure import base_parameters, features, lookup_scale, raw_parameter
from luthier.interop.formats._peft_targets import copied, keeps_tied
from luthier.methods.forms.bitfit import BitFit
from luthier.methods.forms.full import Full
from luthier.methods.forms.lora import LoRA


def whole_parameters(
    folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module, tied: bool = False
) -> list[Found]:
    """Parameters that were trained themselves (heads, biases, tables), given by path; untouched ones are left out.

    peft's copy of one module (`modules_to_save`) serves there alone, though the base ties it to another: such a copy
    becomes a change of that module's own reading. One tensor under all names, or one that peft keeps tied
    (`ensure_weight_tying`) or writes into the base itself, moves them all; with `tied`, so does any.
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
        if tied or _together(config, names, given):
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
    if len(names) == 1 or keeps_tied(config):
        return True
    same = all(first.shape == other.shape and torch.equal(first, other) for other in others)
    return same and (len(given) == len(names) or not any(copied(config, name) for name in given))


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
        return Found(form, "affine", {path: {"A": _own(left.mT), "B": _own(scale * right.mT)}})
    if not features(module):
        raise LuthierError(
            f"{folder}: {path} is tied to another module and was trained alone; no form of ours does so."
        )
    return Found(form, "affine", {path: {"A": _own(right), "B": _own(left)}})


def _own(tensor: Tensor) -> Tensor:
    """A copy, for the factors of tied layers lie in one file, and none may share memory there."""
    return tensor.clone(memory_format=torch.contiguous_format)


def met(folder: Path, found: list[Found], model: nn.Module) -> list[Found]:
    """Returns what was found without tables that no forward pass reads, since others share their weight: T5 reads the
    tables of its encoder and decoder, and `shared` itself never."""
    known, modules = dict(base_parameters(model, remove_duplicate=False)), dict(model.named_modules())
    tables = {
        path
        for each in found
        for path in each.tensors
        if each.kind == "affine"
        and isinstance(modules.get(path), nn.Embedding)
        and sum(counterpart is known.get(f"{path}.weight") for counterpart in known.values()) > 1
    }
    idle = tables - _read(model, tables) if tables else set()
    if not idle:
        return found
    warnings.warn(
        f"{folder}: no pass of this {type(model).__name__} reads {', '.join(sorted(idle))} itself, so what was trained "
        "there does nothing, and is left out.",
        stacklevel=2,
    )
    left = [replace(each, tensors=_without(each.tensors, idle), ranks=_without(each.ranks, idle)) for each in found]
    return [each for each in left if each.tensors]


def _without(table: Mapping[str, Any], paths: set[str]) -> dict[str, Any]:
    return {path: value for path, value in table.items() if path not in paths}


def _read(model: nn.Module, paths: set[str]) -> set[str]:
    """The modules among these that a forward pass calls; all of them where no pass can be run."""
    called: set[str] = set()
    hooks = [model.get_submodule(p).register_forward_hook(lambda *_, p=p: called.add(p)) for p in paths]
    try:
        run_once(model)
    except Exception:
        return paths
    finally:
        for hook in hooks:
            hook.remove()
    return called


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
        others = [each for each in rows if each != path and f"{each}.weight" in tied]
        if any(indices[each] != where or not torch.equal(rows[each], held) for each in others):
            raise LuthierError(f"{folder} trains tokens of {' and of '.join(tied)} apart, which are one tensor here.")
        if list(rows).index(path) > min(map(list(rows).index, others), default=len(rows)):
            continue  # the same rows once more, under the name of what is tied to it
        change = held - table.detach()[where].to(held)
        places = [name.removesuffix(".weight") for name in tied]
        found += [
            *(low_rank(folder, model, place, spots, change) for place in places),
            *_unbiased(folder, places, model),
        ]
    return found


def _unbiased(folder: Path, places: list[str], model: nn.Module) -> list[Found]:
    """What peft 0.21 makes of a head whose tokens are trained: it runs without its bias, which it has again merged."""
    biases = {f"{place}.bias" for place in places if model.get_submodule(place)._parameters.get("bias") is not None}
    if not biases:
        return []
    warnings.warn(
        f"{folder} trains tokens of a head, whose bias ({', '.join(sorted(biases))}) peft 0.21 leaves out until it is "
        "merged. It comes in as it was trained, without.",
        stacklevel=3,
    )
    kept = {path: {"delta": -raw_parameter(model, path).detach().float()} for path in sorted(biases)}
    return [Found(BitFit(), "param", kept)]
