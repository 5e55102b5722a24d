"""Splits: the parts of a source, train, validation and test, by the words of its names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from luthier.core.errors import LuthierError, near

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Words of names that tell a split."""


SHOWN = 20


def split_of(name: str, whole: bool = False) -> str:
    """Returns the split that a name tells by one of its words, or by being one; empty if none."""
    words = [name.lower()] if whole else re.split(r"[^a-z]+", name.lower())
    return next((split for word in words for split, known in SPLITS.items() if word in known), "")


def of_split(where: str, split: str, found: Collection[str], files: str = "") -> str:
    """Returns the one of the splits `found` that is asked for; raises if it is not there."""
    name = split if split in found else next((name for name, words in SPLITS.items() if split in words), split)
    if name not in found:
        raise LuthierError(f"{where} has no split {split!r}{near(split, found)} {files or f'It has: {listed(found)}.'}")
    return name


def listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")
