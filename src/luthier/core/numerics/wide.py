"""Sums in float64, on devices that have it and on those that have not."""

from __future__ import annotations

import torch
from torch import Tensor

LACKING = ("mps",)
"""Types of devices without float64: Apple's GPU."""


def widest(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 where the device has no other."""
    return torch.float32 if device.type in LACKING else torch.float64


def widened(tensor: Tensor) -> Tensor:
    """Returns a tensor where it lies, in the widest format there."""
    return tensor.to(widest(tensor.device))


def exact(tensor: Tensor) -> Tensor:
    """Returns a tensor in float64, on the CPU where its own device has none."""
    return (tensor.cpu() if tensor.device.type in LACKING else tensor).double()
