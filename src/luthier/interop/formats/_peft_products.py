"""Methods of peft whose change is a product of smaller matrices, and so exactly one of low rank: VeRA, LoHa, LoKr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features, unfolded_features
from luthier.interop.formats import _peft_beside as beside
from luthier.interop.formats._factors import Pair, lora_of
from luthier.interop.formats._peft_config import merging
from luthier.interop.formats._peft_read import Reader, by_pattern, scale_of, sorted_out, stored_names

HADA = {f"hada_w{side}_{end}": f"w{side}_{end}" for side in "12" for end in "ab"} | {"hada_t1": "t1", "hada_t2": "t2"}
KRON = {f"lokr_w{side}{end}": f"w{side}{end}" for side in "12" for end in ("", "_a", "_b")} | {"lokr_t2": "t2"}
"""Ends of keys, and what we call the tensors; t1 and t2 are of convolutions alone."""
LAMBDA = {"vera_lambda_b": "b", "vera_lambda_d": "d"}
Factors = tuple[Tensor, Tensor]


def read_vera(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """VERA: diag(b) B · diag(d) A with B and A of all layers, of which each takes its own rows and columns."""
    shared = {key: tensor for key, tensor in tensors.items() if key.endswith(("vera_A", "vera_B"))}
    sides = [[tensor for key, tensor in shared.items() if key.endswith(f"vera_{side}")] for side in "BA"]
    if not all(sides) or any(not _alike(side) for side in sides):
        raise LuthierError(
            f"{folder} holds no vera_A and vera_B, which peft draws anew then (save_projection=False), as no other "
            f"library does. {merging(tensors, model)}"
        )
    b, a = (side[0] for side in sides)

    def product(found: Mapping[str, Tensor]) -> Factors:
        return found["b"][:, None] * b[: len(found["b"])], found["d"][:, None] * a

    rest = {key: tensor for key, tensor in tensors.items() if key not in shared}
    groups, others = sorted_out(folder, config, rest, LAMBDA, model)
    pairs = {}
    for path, found in groups.items():
        left, right = _checked(folder, path, found, ({"b", "d"},), product)
        pairs[path] = Pair(left, right[:, : _width(folder, path, tensors, model)])
    return [
        *lora_of(folder, pairs, model, _dropout(config, "vera")),
        *beside.whole_parameters(folder, config, others, model),
    ]


def read_loha(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LOHA: (w1_a w1_b) ⊙ (w2_a w2_b), of rank r² at most."""

    def product(found: Mapping[str, Tensor]) -> Factors:
        left = found["w1_a"][:, :, None] * found["w2_a"][:, None, :]
        right = found["w1_b"][:, None, :] * found["w2_b"][None, :, :]
        return left.flatten(1), right.flatten(0, 1)

    return _read(folder, config, tensors, model, HADA, ({"w1_a", "w1_b", "w2_a", "w2_b"},), product)


def read_lokr(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """LOKR: kron(w1, w2), of which each may be a product itself: kron(w1, w2_a) · kron(1, w2_b)."""

    def product(found: Mapping[str, Tensor]) -> Factors:
        first = found["w1"] if "w1" in found else found["w1_a"] @ found["w1_b"]
        left, right = (found["w2_a"], found["w2_b"]) if "w2_a" in found else (_eye(len(found["w2"])), found["w2"])
        return torch.kron(first, left), torch.kron(_eye(first.shape[1]), right)

    firsts, seconds = ({"w1"}, {"w1_a", "w1_b"}), ({"w2"}, {"w2_a", "w2_b"})
    return _read(folder, config, tensors, model, KRON, tuple(x | y for x in firsts for y in seconds), product)


def _read(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    ends: Mapping[str, str],
    expected: tuple[set[str], ...],
    product: Callable[[Mapping[str, Tensor]], Factors],
) -> list[Found]:
    """LyCORIS's methods, as peft has them: alpha / r times the product."""
    groups, rest = sorted_out(folder, config, tensors, ends, model)
    told = stored_names(tensors, ends, model)
    pairs = {}
    for path, found in groups.items():
        _width(folder, path, tensors, model)
        rank = by_pattern(folder, config.get("rank_pattern"), told[path], config.get("r"))
        scale = scale_of(folder, {**config, "lora_alpha": config.get("alpha")}, told[path], rank)
        pairs[path] = Pair(*_checked(folder, path, found, expected, product), scale)
    return [*lora_of(folder, pairs, model), *beside.whole_parameters(folder, config, rest, model)]


def _checked(
    folder: Path,
    path: str,
    found: Mapping[str, Tensor],
    expected: tuple[set[str], ...],
    product: Callable[[Mapping[str, Tensor]], Factors],
) -> Factors:
    """The factors of a layer, of no higher rank than the layer itself has."""
    if set(found) not in expected:
        wanted = " or ".join(", ".join(sorted(each)) for each in expected)
        raise LuthierError(f"{folder}: {path} has {', '.join(sorted(found))}; expected {wanted}.")
    try:
        left, right = product(found)
        whole = left @ right if left.shape[1] > min(len(left), right.shape[1]) else None
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in found.items())
        raise LuthierError(f"{folder}: the tensors of {path} do not fit each other ({shapes}).") from None
    if whole is None:
        return left, right
    return (_eye(len(whole)), whole) if len(whole) <= whole.shape[1] else (whole, _eye(whole.shape[1]))


def _width(folder: Path, path: str, names: Iterable[str], model: nn.Module) -> int:
    module = model.get_submodule(path)
    if unfolded_features(module) or isinstance(module, nn.Embedding):
        raise LuthierError(
            f"{folder} adapts {path}, a {type(module).__name__}, where this has no equal here. {merging(names, model)}"
        )
    return (features(module) or (0, 0))[0]


def _alike(copies: list[Tensor]) -> bool:
    """Whether all are one matrix, which a model's own keys have at every layer."""
    first = copies[0]
    return first.dim() == 2 and all(first.shape == each.shape and torch.equal(first, each) for each in copies)


def _dropout(config: Mapping[str, Any], method: str) -> float:
    return float(config.get(f"{method}_dropout") or 0.0)


def _eye(size: int) -> Tensor:
    return torch.eye(size)


READERS: Mapping[str, Reader] = {"VERA": read_vera, "LOHA": read_loha, "LOKR": read_lokr}
"""By `peft_type`."""
