"""Random tasks of labelled vectors: a projection of the vectors and a permutation of the classes."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.numerics.draws import draw_of
from luthier.core.paths import path_of
from luthier.training.in_context.spec import InContext

DIGITS = "digits"
HELD_OUT = 5
"""Every so-maniest row is held out."""


@dataclass(frozen=True)
class Rows:
    """Labelled vectors: x [rows, n] of mean 0 and, over all numbers, mean square 1; y [rows] from 0."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Task:
    """A classification of its own: x' = A x with A [m, n], entries N(0, 1/n), and y' = π(y)."""

    projection: Tensor
    permutation: Tensor

    @classmethod
    def drawn(cls, number: int, n: int, spec: InContext) -> Task:
        """The task of this number, by the seed."""
        draw = draw_of(f"{spec.seed} task {number}")
        projection = torch.randn(spec.dimension, n, generator=draw) / math.sqrt(n)
        return cls(projection, torch.randperm(spec.classes, generator=draw))


def read(spec: InContext) -> tuple[Rows, Rows]:
    """Returns (rows to learn, rows held out) of the first classes; raises for data that does not serve."""
    x, y = _digits() if spec.data == DIGITS else _file(path_of(spec.data))
    names = np.unique(y)
    if len(names) < spec.classes:
        raise LuthierError(f"{spec.data} has {len(names)} classes, and classes is {spec.classes}; ask for fewer.")
    kept = np.isin(y, names[: spec.classes])
    x, y = x[kept], np.searchsorted(names, y[kept])
    x = x - x.mean(0)
    apart = np.square(x).mean() ** 0.5
    if not np.isfinite(apart) or not apart > 0:
        raise LuthierError(f"{spec.data} has an x that is not finite or always the same; there is nothing to tell.")
    x = x / apart
    order = torch.randperm(len(x), generator=draw_of(f"{spec.seed} split")).numpy()
    held = np.arange(len(x)) % HELD_OUT == 0
    learned, out = (Rows(torch.tensor(x[part]).float(), torch.tensor(y[part])) for part in (order[~held], order[held]))
    if min(len(learned.y.unique()), len(out.y.unique())) < spec.classes:
        raise LuthierError(f"{spec.data} has too few rows of a class to hold one in {HELD_OUT} out; give more.")
    return learned, out


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise LuthierError(f"the data {DIGITS} need scikit-learn: pip install 'luthier[monitor]'") from None
    x, y = load_digits(return_X_y=True)
    return np.asarray(x, dtype=np.float64), np.asarray(y)


def _file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise LuthierError(
            f"{path} is not an .npz file; expected {DIGITS}, or an .npz file with x [rows, …] and y [rows]."
        )
    with guarded(f"{path} cannot be read"), np.load(path, allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    if not {"x", "y"} <= found.keys():
        raise LuthierError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected x [rows, …] and y [rows].")
    x, y = found["x"], found["y"]
    if y.ndim != 1 or not len(y) or len(x) != len(y):
        raise LuthierError(
            f"{path} has x {list(x.shape)} and y {list(y.shape)}; expected as many rows, y of one class each."
        )
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuU":
        raise LuthierError(
            f"{path} has x of {x.dtype} and y of {y.dtype}; expected numbers, and whole numbers or texts."
        )
    return x.reshape(len(x), -1).astype(np.float64), y


def sequences(rows: Rows, numbers: Sequence[int], spec: InContext, key: str) -> tuple[Tensor, Tensor]:
    """Returns (x' [sequences, T, m], y' [sequences, T]) of a sequence of each task, rows drawn with replacement."""
    xs, ys = [], []
    for place, number in enumerate(numbers):
        draw, task = draw_of(f"{key} {place}"), Task.drawn(number, rows.x.shape[1], spec)
        chosen = torch.randint(len(rows.y), (spec.length,), generator=draw)
        y = task.permutation[rows.y[chosen]]
        xs.append(rows.x[chosen] @ task.projection.T)
        ys.append(torch.randint(spec.classes, y.shape, generator=draw) if spec.shuffled else y)
    return torch.stack(xs), torch.stack(ys)
