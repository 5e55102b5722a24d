"""Adapters of peft in a model's folder, which transformers would load without being asked."""

from __future__ import annotations

import warnings
from pathlib import Path

FILE = "adapter_config.json"
WITHOUT = {"subfolder": "without-the-adapter-beside"}
"""The `adapter_kwargs` of `from_pretrained` that have it look for adapters where there are none."""


def tell_adapter(path: Path | str, name: str) -> None:
    """Warns of an adapter in a model's folder, which is not applied."""
    if isinstance(path, Path) and (path / FILE).is_file():
        warnings.warn(
            f"{name} holds an adapter of peft's beside the model ({FILE}). The model is loaded without it: its weights "
            "may hold the adapter already. To have it, `luthier import` converts it to an adapter of Luthier.",
            stacklevel=3,
        )
