"""The fingerprint of formats 1 to 3: values of 32 tensors, whose stride could pass over every kind but one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from luthier.core.sites.structure import base_modules, base_parameters, block_lists, is_sharded

TENSORS = 32


def candidates(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the floating tensors inside the blocks, and the embeddings; heads stay out."""
    inside = tuple(f"{path}." for path in block_lists(model))
    tables = {f"{path}.weight" for path, m in base_modules(model) if isinstance(m, nn.Embedding)}
    return {
        path: parameter
        for path, parameter in base_parameters(model)
        if parameter.is_floating_point()
        and (type(parameter.data) is torch.Tensor or is_sharded(parameter))
        and not parameter.is_meta
        and (path in tables or path.startswith(inside or ("",)))
    }


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Returns `{"model", "architecture", "dtype", "sample"}` as these formats hold it."""
    from luthier.core.sites.samples import architecture, class_name, values

    tensors = candidates(model)
    chosen = list(tensors.items())[:: max(1, len(tensors) // TENSORS)][:TENSORS]
    return {
        "model": class_name(model),
        "architecture": architecture(model),
        "dtype": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "sample": {path: values(tensor) for path, tensor in chosen},
    }


def digest(model: nn.Module) -> str:
    """Returns what `run.json` held of it."""
    return hashlib.sha256(json.dumps(fingerprint(model), sort_keys=True).encode()).hexdigest()


def differences(stored: dict[str, Any], model: nn.Module) -> str | None:
    """Returns why the base of `stored` is not `model`; None if nothing that was looked at then says so."""
    from luthier.core.sites.samples import close, values

    tensors = candidates(model)
    shared = [path for path in stored["sample"] if path in tensors]
    if not shared and stored["sample"]:
        return "none of its weights can be compared with this base"
    exact = stored["dtype"] == sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})
    wrong = (p for p in shared if not close(stored["sample"][p], values(tensors[p]), exact))
    return next((f"its weights differ (first in {path})" for path in wrong), None)
