"""What leaves a module: a tensor, or a tuple or list of which the tensor is the first."""

from __future__ import annotations

from typing import Any


def leading(output: Any) -> Any:
    """Returns the tensor that leaves a module, whatever comes with it."""
    return output[0] if isinstance(output, tuple | list) else output


def led(output: Any, first: Any) -> Any:
    """Returns what leaves a module with another tensor in front."""
    if isinstance(output, list):
        return [first, *output[1:]]
    return (first, *output[1:]) if isinstance(output, tuple) else first
