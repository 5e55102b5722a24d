"""What peft's LoRA holds for one layer: block diagonals made whole, convolutions, and what has no equal here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features, lookup_scale, unfolded_features


def whole_factors(folder: Path, config: Mapping[str, Any], found: dict[str, Tensor], module: nn.Module) -> None:
    """Makes the block-diagonal factor of BD-LoRA whole, which is stored as its blocks above one another."""
    told = config.get("use_bdlora")
    if not told:
        return
    blocks = told.get("nblocks") if isinstance(told, dict) else None
    if type(blocks) is not int or blocks < 1:
        raise LuthierError(f"{folder}: use_bdlora is {told!r}; expected a table with a number of blocks (nblocks).")
    widths = {"A": (features(module) or (0, 0))[0], "B": len(found["A"])}
    for key, width in widths.items():
        stored = found[key]
        if blocks > 1 and stored.dim() == 2 and stored.shape[1] * blocks == width and len(stored) % blocks == 0:
            found[key] = torch.block_diag(*stored.chunk(blocks))


def check_layer(
    folder: Path, path: str, found: Mapping[str, Tensor], module: nn.Module, dora: bool, merged: Callable[[], str]
) -> None:
    """Raises for factors that do not fit each other, and for a layer where they have no equal here; `merged` is what to
    do with what peft can merge."""
    if dora and isinstance(module, nn.Embedding):
        lookup_scale(path, module)  # a table that looks up something else says so: peft does not merge it right
        raise LuthierError(f"{folder} adapts the table {path} by DoRA, which has no equal here. {merged()}")
    if isinstance(module, _ConvNd):
        _check_convolution(folder, path, module, dora, merged)
    elif found["A"].dim() != 2 or found["B"].dim() != 2 or len(found["A"]) != found["B"].shape[1]:
        raise LuthierError(f"{folder}: the factors of {path} do not fit each other, or are no matrices.")


def _check_convolution(folder: Path, path: str, module: _ConvNd, dora: bool, merged: Callable[[], str]) -> None:
    who = f"{folder} adapts the convolution {path}"
    if module.groups > 1:
        raise LuthierError(
            f"{who}, whose {module.groups} groups peft's LoRA reads across, so that no weight of its shape holds the "
            "change; peft does not merge it either. Run it with peft."
        )
    if any(size != 1 for size in module.dilation) or module.padding_mode != "zeros":
        raise LuthierError(
            f"{who}, whose dilation or padding ({module.padding_mode}) peft's LoRA does not share, so that no weight "
            "holds the change."
        )
    if dora:
        raise LuthierError(f"{who} by DoRA, which has no equal for one here. {merged()}")
    if not unfolded_features(module):
        raise LuthierError(f"{who}, a {type(module).__name__}; LoRA has no equal for one here. {merged()}")
