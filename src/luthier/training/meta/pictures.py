"""Predicted masks as a picture: a column for each picture asked, with its mask and what was predicted below it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from luthier.core.contracts.meta import Shots

SHOWN, GAP, LEAST = 8, 2, 64


def save_pictures(path: Path, asked: Shots, predicted: Sequence[Tensor]) -> None:
    """Writes up to eight columns: the picture, its mask, the probabilities of each of these logits [n, side, side]."""
    from PIL import Image

    rows = [_pictures(asked.pictures[:SHOWN]), _grey(asked.masks[:SHOWN])]
    rows += [_grey(logits[:SHOWN].sigmoid()) for logits in predicted]
    framed = [np.pad(row, ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=128) for row in rows]
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in framed])
    times = max(1, LEAST // asked.masks.shape[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.repeat(times, 0).repeat(times, 1)).save(path)


def _pictures(values: Tensor) -> np.ndarray:
    """Pictures [n, 3, h, w] as bytes [n, h, w, 3], each over its own range: the model's scale is not the eye's."""
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return _bytes(((values - low) / (high - low).clamp(min=1e-6)).permute(0, 2, 3, 1))


def _grey(values: Tensor) -> np.ndarray:
    return _bytes(values[..., None].expand(-1, -1, -1, 3))


def _bytes(values: Tensor) -> np.ndarray:
    return (values.float().cpu().clamp(0, 1) * 255).round().byte().numpy()
