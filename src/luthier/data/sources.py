"""Sources: from a file, a folder, a hub id or a gym task to numbered rows of columns."""

from __future__ import annotations

from pathlib import Path

from luthier.core.errors import LuthierError, near
from luthier.core.paths import path_of
from luthier.data.files import READERS, read_file, suffix
from luthier.data.split_column import of_column
from luthier.data.table import Table

MADE = ("gym:", "facts:", "code:", "mix:")
"""How sources open that are no files."""


def read(
    source: str, split: str | None = None, limit: int | None = None, seed: int = 0, divided: bool = False
) -> Table:
    """Returns the rows of `source`: a file, a folder (see `luthier.data.folder`), `gym:<task>?settings`,
    `facts:<kind>`, `code:human_eval`, a hub id (`id:config:split`), or several of these
    (`mix:<task>=<source>,<task>=<source>`).

    `path:configuration:split` and `path::split` choose one by its name, whatever `split` says.
    A single file is one split, unless it is an object of splits
    (`{"train": […], "test": […]}`), or, where it is to be `divided` or a split is chosen by its name, has a column
    `split` that names several; a folder gives the files of `split` (None: train). `limit` and
    `seed` reach only sources that are generated: reading all of a file costs little and finds all
    its bad rows. Raises `LuthierError` when nothing is there to read.
    """
    if source.startswith("gym:"):
        from luthier.data.gym import read_gym

        return read_gym(source, split or "train", limit, seed)
    if source.startswith("facts:"):
        from luthier.data.facts import read_facts

        return read_facts(source, split or "train")
    if source.startswith("code:"):
        from luthier.data.problems import read_problems

        return read_problems(source, split or "train")
    if source.startswith("mix:"):
        from luthier.data.mix import read_mix

        return read_mix(source, lambda each: read(each, split, limit, seed, divided))
    path, config, named = _parted(source)
    there = path.is_dir(), path.is_file()
    wanted = named or split or "train"
    if there[0]:
        from luthier.data.folder import read_folder

        return read_folder(path, config, wanted)
    if there[1]:
        whole = f"{path} is one file, which has no parts to choose by {source.removeprefix(str(path))}."
        if config:
            raise LuthierError(whole)
        table = read_file(path, wanted)
        part = of_column(table, wanted, str(path), bool(named)) if named or divided else None
        if named and suffix(path) != ".json" and part is None:
            raise LuthierError(whole)
        return part or table
    bare = source.partition("::")[0]
    if _looks_like_path(bare):
        hint = _near_files(path_of(bare))
        raise LuthierError(f"no data file {bare}{hint} Known suffixes: {', '.join(READERS)}.")
    from luthier.data.hub import read_hub

    return read_hub(source, split or "train")


def _parted(source: str) -> tuple[Path, str, str]:
    """(path, configuration, split) of a folder's or file's `path:configuration:split`; else the path alone."""
    path = path_of(source, "no data")
    parts = source.split(":")
    for count in (0, 1, 2):
        before = path_of(":".join(parts[: len(parts) - count]), "no data")
        if len(parts) > count and before.exists():
            config, split = (*parts[len(parts) - count :], "", "")[:2]
            return before, config, split
    return path, "", ""


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or suffix(Path(source)) in READERS or source.count("/") > 1


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}."
    return near(path.name, [p.name for p in path.parent.iterdir()]) or "."
