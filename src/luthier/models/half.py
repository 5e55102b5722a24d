"""Models of pictures and sounds in half precision: what prepares their inputs makes float32."""

from __future__ import annotations

from typing import Any

MADE = ("input_features", "input_values", "pixel_values")
"""What is made of pictures and sounds."""


def take_in_its_dtype(model: Any) -> None:
    """Has a model of pictures or sounds in half precision take their float32 values as its own dtype."""
    import torch

    if model.main_input_name in MADE and model.dtype in (torch.bfloat16, torch.float16):
        model.register_forward_pre_hook(_cast, with_kwargs=True)


def in_its_dtype(model: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Returns inputs whose pictures and sounds are of the model's dtype."""
    return {name: value.to(model.dtype) if name in MADE else value for name, value in values.items()}


def _cast(model: Any, args: tuple, values: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return args, in_its_dtype(model, values)
