"""Kinds of masks: pictures with their masks, read and checked before a model is loaded."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier import data
from luthier.core.contracts.meta import Shots
from luthier.core.errors import LuthierError
from luthier.core.files import sha256
from luthier.core.guard import guarded
from luthier.data.pictures import pillow
from luthier.data.table import Row, Table
from luthier.training.meta.spec import MetaRun


@dataclass(frozen=True)
class Kind:
    """One kind of mask, a task of its own."""

    name: str
    """The file's name without its ending."""
    shots: Shots
    fingerprint: str
    """SHA-256 over the files of its pictures and masks."""

    def drawn(self, shown: int, asked: int, key: str) -> tuple[Shots, Shots]:
        """Returns pictures to show, and others to ask for, of the episode of this key."""
        count = len(self.shots)
        order = random.Random(f"{key} {self.fingerprint}").sample(range(count), min(shown + asked, count))
        return self.shots.at(order[:shown]), self.shots.at(order[shown:])


def read_kinds(spec: MetaRun, processor: Any) -> tuple[list[Kind], list[Kind]]:
    """Reads the kinds that are learned, and those that are not; raises for those that do not serve."""
    names = [Path(source).stem for source in (*spec.domains, *spec.tests)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise LuthierError(f"two kinds of mask are called {twice[0]}, after their files; give each its own name.")
    seeing = _seeing(spec.model, processor)
    found = [_read(spec, source, seeing) for source in (*spec.domains, *spec.tests)]
    return found[: len(spec.domains)], found[len(spec.domains) :]


def _seeing(model: str, processor: Any) -> Any:
    """What prepares the model's pictures; raises for a model that reads none."""
    from transformers.image_processing_utils import BaseImageProcessor

    found = getattr(processor, "image_processor", processor)  # of those that prepare texts too
    if not isinstance(found, BaseImageProcessor):
        raise LuthierError(
            f"{model} comes with a {type(found).__name__} and reads no pictures; masks need one that does."
        )
    return found


def _read(spec: MetaRun, source: str, processor: Any) -> Kind:
    table = data.read(source)
    if table.bad:
        raise LuthierError(f"{source}, row {table.place(table.bad[0][0])}: {table.bad[0][1]}.")
    if len(table.rows) <= spec.shots:
        raise LuthierError(
            f"{source} has {len(table.rows)} rows, and an episode shows {spec.shots} pictures and asks for at least "
            "one more; give more rows, or fewer shots."
        )
    files = [[_file(source, table, number, row, column) for column in ("image", "mask")] for number, row in table.rows]
    pairs = [_pair(picture, mask, spec.side, processor) for picture, mask in files]
    masks = torch.from_numpy(np.stack([mask for _, mask in pairs]))
    if not (masks > 0.5).any():
        raise LuthierError(
            f"every mask of {source} is empty: no pixel is brighter than half. White (255) marks; give masks that do."
        )
    digest = hashlib.sha256("".join(sha256(path) for pair in files for path in pair).encode()).hexdigest()
    return Kind(Path(source).stem, Shots(torch.from_numpy(np.stack([p for p, _ in pairs])), masks), digest)


def _file(source: str, table: Table, number: int, row: Row, column: str) -> Path:
    value, place = row.get(column), f"{source}, row {table.place(number)}"
    if not isinstance(value, str) or not value:
        what = "without its label it can neither be shown nor asked" if column == "mask" else "there is nothing to see"
        raise LuthierError(f"{place} has no {column}: {what}. Rows need an image and a mask, paths of files.")
    path = (table.folder or Path()) / value
    if not path.is_file():
        raise LuthierError(f"{place} names the {column} {path}, which does not exist.")
    return path


def _pair(picture: Path, mask: Path, side: int, processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """(picture [3, side, side] as the model reads it, mask [side, side] from 0 to 1)."""
    library = pillow()
    with guarded(f"{picture} cannot be read"), library.open(picture) as file:
        seen = file.convert("RGB")
    with guarded(f"{mask} cannot be read"), library.open(mask) as file:
        grey = file.convert("L")
    if seen.size != grey.size:
        wide = ["{} x {}".format(*each.size) for each in (grey, seen)]
        raise LuthierError(
            f"the mask {mask} has {wide[0]} pixels and its picture {picture} {wide[1]}; expected as many."
        )
    with guarded(f"the model's image processor cannot bring {picture} to {side} pixels a side"):
        size = {"height": side, "width": side}
        values = processor(images=seen, size=size, do_center_crop=False, return_tensors="np")["pixel_values"][0]
    if values.shape[1:] != (side, side):
        raise LuthierError(
            f"the model's image processor brings pictures to {' x '.join(map(str, values.shape[1:]))} pixels, and "
            f"masks have {side} a side; give that side, or a model whose pictures may have any."
        )
    scaled = np.asarray(grey.resize((side, side), library.Resampling.BILINEAR), np.float32) / 255
    return np.asarray(values, np.float32), scaled
