"""Splits: the parts of a source, train, validation and test, by the words of its names, and those of names of its own
(`train_sft`, `validation_matched`)."""

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
OWN = r"(-[0-9a-f]{16}(?=\.|$))?"
"""A hash, each file's own, in which names of the hub may end."""
SHARDED = re.compile(rf"(.+)-\d{{5}}-of-\d{{5}}{OWN}", re.DOTALL)
"""How the hub names the files of a split, whatever the split is called."""
PIECE = re.compile(
    r"([-_. ]*(part|shard|chunk|batch|file))?[-_. ](\d+|[a-z])(?=$|[-_. ])|([-_. ]of)?(?<=[a-z])\d+$", re.I
)
"""What numbers the files of one split."""


def split_of(name: str, whole: bool = False) -> str:
    """Returns the split that a name tells by one of its words, or by being one; empty if none."""
    words = [name.lower()] if whole else re.split(r"[^a-z]+", name.lower())
    return next((split for word in words for split, known in SPLITS.items() if word in known), "")


def own_split(name: str) -> str:
    """Returns the split of its own that a file's name (without suffixes) tells: `train_sft` of `train_sft-2`, and of
    the hub's `NAME-00000-of-00001` whatever stands there; empty where the name only says which of the three it is."""
    sharded = SHARDED.fullmatch(name)
    bare = sharded[1] if sharded else PIECE.sub("", name)
    first = re.split(r"[^a-z]+", bare.lower())[0]
    own = bool(sharded) or bool(split_of(first, whole=True))
    return bare if own and not split_of(bare, whole=True) else ""


def of_split(where: str, split: str, found: Collection[str], files: str = "", source: str = "") -> str:
    """Returns the one of the splits `found` that is asked for, by its name or as the only one of its kind; raises if
    there is none, or more than one. `source` is what a split's name is put behind to choose it."""
    if split in found:
        return split
    name = split_of(split, whole=True)
    if name in found:
        return name
    kin = [each for each in found if name and split_of(each) == name]
    if len(kin) == 1:
        return kin[0]
    source = source or f"{where}::"
    if kin:
        raise LuthierError(f"{where} has several splits for {name}: {listed(kin)}; choose one: {source}{min(kin)}.")
    told = f"{files or f'It has: {listed(found)}.'}" + (f" Choose one: {source}{min(found)}." if found else "")
    raise LuthierError(f"{where} has no split {split!r}{near(split, found)} {told}")


NUMBERED = re.compile(rf"(.*[-_.])(\d+)-of-(\d+){OWN}(.*)", re.DOTALL)
"""A file that is one of so many, as the hub numbers them, from 0 or from 1."""


def missing_parts(names: Iterable[str]) -> list[str]:
    """Returns in words how many files are among `names` where these say that there are more."""
    found: dict[tuple[str, str, str], set[int]] = {}
    for each in filter(None, map(NUMBERED.fullmatch, names)):
        before, number, count, _, after = each.groups()
        found.setdefault((before, count, after), set()).add(int(number))
    return [
        f"{len(numbers):,} of {int(count):,} files of {before}…-of-{count}{after}"
        for (before, count, after), numbers in found.items()
        if len(numbers) < int(count)
    ]


def listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")
