"""What is kept of a base to know it again: its architecture, and a few values of a tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import base_parameters, full_tensor, is_sharded

VALUES = 8
"""Values of a tensor that are kept as numbers, to compare bases in different precisions."""


LARGEST = 3e38
"""What stands for infinity among these."""


def architecture(model: nn.Module, renamed: Callable[[str], str] = str) -> str:
    """A hash of the layers inside the blocks and of their sizes, under other names where `renamed` gives them."""
    scope = Scope(model)
    layers = sorted(f"{renamed(s.path)} {s.d_in} {s.d_out}" for s in scope.named if s.layer is not None)
    return hashlib.sha256("\n".join(layers).encode()).hexdigest()[:32]


def class_name(model: nn.Module) -> str:
    """Returns the name of the model's class; FSDP2 makes one of its own."""
    if not any(is_sharded(parameter) for _, parameter in base_parameters(model)):
        return type(model).__name__
    from torch.distributed.fsdp import FSDPModule

    return next(cls.__name__ for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))


def values(tensor: Tensor) -> list[float]:
    """Returns 8 values at fixed, evenly spaced places."""
    size = tensor.numel()
    count = min(VALUES, size)
    places = [i * (size - 1) // max(1, count - 1) for i in range(count)]
    taken = full_tensor(tensor.detach()).reshape(-1)[places].cpu().double()
    return taken.nan_to_num(0.0, LARGEST, -LARGEST).tolist()  # JSON has no infinity


def close(theirs: list[float], ours: list[float], exact: bool) -> bool:
    """Whether sampled values are the same, up to rounding to another precision unless `exact`."""
    a, b = torch.tensor(theirs), torch.tensor(ours)
    return a.shape == b.shape and torch.allclose(a, b, *((0.0, 0.0) if exact else (1e-2, 1e-5)), equal_nan=True)
