"""What tells one base from another: its layers, and a sample of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import base_modules, base_parameters, block_lists, is_sharded, whole

TENSORS, VALUES = 32, 8
LEAST = 32
"""Values below which two bases are not compared for kinship."""


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """`{"model", "architecture", "dtype", "sample"}` of the base under an adapted model.

    The architecture is a hash of the layers and their sizes, equal for a packed copy. The sample takes 8 values of
    up to 32 floating tensors inside the blocks and of the embeddings; heads, which a task replaces, stay out. Where
    the base is sharded, every process must ask.
    """
    scope = Scope(model)
    layers = sorted(f"{s.path} {s.d_in} {s.d_out}" for s in scope.named if s.layer is not None)
    digest = hashlib.sha256("\n".join(layers).encode()).hexdigest()
    tensors = _candidates(model)
    return {
        "model": _class_name(model),
        "architecture": digest[:32],
        "dtype": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "sample": _sample(tensors),
    }


def _class_name(model: nn.Module) -> str:
    """The name of the model's class; FSDP2 makes one of its own."""
    if not any(is_sharded(parameter) for _, parameter in base_parameters(model)):
        return type(model).__name__
    from torch.distributed.fsdp import FSDPModule

    return next(cls.__name__ for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def _candidates(model: nn.Module) -> dict[str, torch.Tensor]:
    inside = tuple(f"{path}." for path in block_lists(model))
    tables = {f"{path}.weight" for path, m in base_modules(model) if isinstance(m, nn.Embedding)}
    return {
        path: parameter
        for path, parameter in base_parameters(model)
        if parameter.is_floating_point()
        and (type(parameter.data) is torch.Tensor or is_sharded(parameter))  # a packed tensor has other values
        and not parameter.is_meta
        and (path in tables or path.startswith(inside or ("",)))
    }


def _sample(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Values at fixed, spread places of spread tensors."""
    found = list(tensors.items())
    chosen = found[:: max(1, len(found) // TENSORS)][:TENSORS]
    return {path: _values(tensor) for path, tensor in chosen}


def _values(tensor: torch.Tensor) -> list[float]:
    size = tensor.numel()
    count = min(VALUES, size)
    places = [i * (size - 1) // max(1, count - 1) for i in range(count)]
    flat = whole(tensor.detach()).reshape(-1)
    return [float(flat[i]) for i in places]


def differences(stored: dict[str, Any], model: nn.Module) -> str | None:
    """Why the base of `stored` is not `model`; None if it is. Rounding to another dtype is allowed for."""
    here = fingerprint(model)
    if stored["architecture"] != here["architecture"]:
        return f"its layers differ ({stored['model']} there, {here['model']} here, or another size)"
    tensors = _candidates(model)
    shared = [path for path in stored["sample"] if path in tensors]
    if not shared and stored["sample"]:
        return "none of its weights can be compared with this base"
    exact = stored["dtype"] == here["dtype"]
    for path in shared:
        theirs, ours = torch.tensor(stored["sample"][path]), torch.tensor(_values(tensors[path]))
        tolerance = (0.0, 0.0) if exact else (1e-2, 1e-5)
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, *tolerance):
            return f"its weights differ (first in {path})"
    return None


def sample_of(get: Callable[[str], torch.Tensor | None], model: nn.Module) -> dict[str, list[float]]:
    """The sample of other weights under the names of `model`; `get(name)` gives a tensor, or None without one."""
    found = {path: get(path) for path in _sample(_candidates(model))}
    return {path: _values(tensor) for path, tensor in found.items() if tensor is not None}


def kinship(sample: dict[str, list[float]], model: nn.Module) -> float | None:
    """Cosine between sampled weights and those of `model`, from -1 to 1; None where too few can be compared.

    About 1 for a base that grew out of the other, about 0 for two that were trained apart. Matrices inside the blocks
    are compared, each at its own scale: norms look alike everywhere, and tables may have other rows.
    """
    inside = tuple(f"{path}." for path in block_lists(model))
    here = {path: t for path, t in _candidates(model).items() if path.startswith(inside or ("",)) and t.dim() > 1}
    pairs = [(torch.tensor(sample[path]), torch.tensor(_values(here[path]))) for path in sample if path in here]
    pairs = [(a, b) for a, b in pairs if a.shape == b.shape and bool(a.any()) and bool(b.any())]
    if sum(len(a) for a, _ in pairs) < LEAST:
        return None
    theirs, ours = (torch.cat([t / t.norm() for t in side]) for side in zip(*pairs, strict=True))
    return float(theirs @ ours / (theirs.norm() * ours.norm()))
