"""What the studio may read and where its runs go: names of models, data and runs, each checked before it is used."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.records import read_json
from luthier.data.files import READERS, suffix
from luthier.data.folder import MEDIA
from luthier.models import catalogue, is_cached
from luthier.serving.http.refusal import Refusal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a run may be called: a folder's name on every system, never a path."""
HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
DEPTH = 4
"""Folders below a given one that are looked into."""
MOST = 500
"""Files that are listed."""
LOOKED = 100_000
"""Files that are looked at for classes of pictures or sounds, whose bytes are summed."""


@dataclass(frozen=True)
class Shelf:
    """Folders that are read, and the one that runs are written to; nothing outside of them has a name here."""

    folders: tuple[Path, ...]
    runs: Path
    working: Path = field(default_factory=Path.cwd)
    """Where commands run: relative paths in the records of runs are from here."""

    @property
    def exports(self) -> Path:
        """Where exports are written."""
        return self.runs / "exports"

    def data(self) -> list[dict[str, Any]]:
        """Returns the files of rows below the folders, and folders of pictures or sounds by class, by name."""
        found = [(self._said(path), path.stat().st_size) for path in self._files()]
        found += [(self._said(path), size) for path, size in self._classes().items()]
        return [{"name": name, "bytes": size} for name, size in sorted(found)]

    def models(self) -> list[dict[str, Any]]:
        """Returns the models of the catalogue, then the folders that hold one."""
        known = [
            {"name": e.name, "told": e.description, "task": e.task, "here": is_cached(e), "kind": "catalogue"}
            for e in catalogue()
        ]
        there = sorted(self._said(path.parent) for path in self._walk() if _is_model(path))
        return [*known, *({"name": n, "told": "", "task": None, "here": True, "kind": "folder"} for n in there)]

    def model(self, name: str) -> str:
        """Returns what the command line takes for a model of that name; raises `Refusal` for one that is not here."""
        if name in {each.name for each in catalogue()}:
            return name
        if folder := self._found(name):
            if _is_model(folder / "config.json"):
                return str(folder)
        elif HUB.fullmatch(name) and not (self.working / name).exists():
            return name
        raise _unknown("model", name, "a name of the catalogue, a folder that the studio was given, or a hub id")

    def source(self, name: str) -> str:
        """Returns the path of a file of rows, or of a folder of classes; raises `Refusal` for one outside of the
        folders."""
        path = self._found(name)
        rows = path is not None and path.is_file() and suffix(path) in READERS
        if path is None or not (rows or (path.is_dir() and path in self._classes())):
            raise _unknown("data", name, "a file of rows in a folder that the studio was given")
        return str(path)

    def within(self, told: Any) -> Any:
        """Returns what a dry run tells without the pictures that lie outside of the folders."""
        rows = told.get("rows") if isinstance(told, dict) else None
        for row in rows if isinstance(rows, list) else []:
            row["pictures"] = [each for each in row["pictures"] if each["name"] is None or self._holds(each["name"])]
        return told

    def _holds(self, path: str) -> bool:
        return any(Path(path).resolve().is_relative_to(folder.resolve()) for folder in self.folders)

    def run(self, name: str, there: bool = True) -> Path:
        """Returns the folder of a run; with `there` it has to hold one."""
        if not NAME.fullmatch(name) or name == self.exports.name:
            message = f"{name!r:.80} cannot name a run; expected letters, digits, '.', '_' and '-', at most 64."
            raise Refusal(400, message, param="name", code="invalid_value")
        folder = self.runs / name
        inside = folder.resolve().parent == self.runs.resolve()
        if there and not (inside and (folder / "run.json").is_file()):
            raise Refusal(404, f"there is no run {name!r}.", param="name", code="not_found")
        if not there and (folder.exists() or folder.is_symlink()):
            raise Refusal(409, f"there is a run {name!r} already; choose another name.", param="name", code="taken")
        return folder

    def names(self) -> list[str]:
        """Returns the names of the runs, the latest first."""
        if not self.runs.is_dir():
            return []
        found = [p for p in self.runs.iterdir() if NAME.fullmatch(p.name) and (p / "run.json").is_file()]
        return [p.name for p in sorted(found, key=lambda p: -(p / "run.json").stat().st_mtime)]

    def _apart(self, folder: Path) -> bool:
        """Whether a folder holds runs, a run or an adapter, none of which is data."""
        return folder == self.runs or any((folder / each).is_file() for each in ("run.json", "adapter.json"))

    def _found(self, name: str) -> Path | None:
        """The path that a name means, if it lies in a folder that was given, links resolved."""
        for folder in self.folders:
            try:
                path = (folder.parent / name).resolve()
                if path.is_relative_to(folder.resolve()) and path.exists():
                    return path
            except (OSError, ValueError):  # NUL, too long, a circle of links
                return None
        return None

    def _said(self, path: Path) -> str:
        folder = next(each for each in self.folders if path.is_relative_to(each))
        return str(path.relative_to(folder.parent))

    def _files(self) -> list[Path]:
        rows = (path for path in self._walk() if suffix(path) in READERS and path.is_file())
        return list(itertools.islice((path for path in rows if not (path.parent / "config.json").is_file()), MOST))

    def _classes(self) -> dict[Path, int]:
        """The folders whose folders, two or more, hold pictures or sounds and no rows, and the bytes of these."""
        kinds = tuple(ending for known in MEDIA.values() for ending in known)
        inner: dict[Path, set[Path]] = {}
        sizes: dict[Path, int] = {}
        rows = set()
        for path in itertools.islice(self._walk(), LOOKED):
            if path.suffix.lower() in kinds and path.is_file() and path.parent not in self.folders:
                inner.setdefault(path.parent.parent, set()).add(path.parent)
                sizes[path.parent.parent] = sizes.get(path.parent.parent, 0) + path.stat().st_size
            elif suffix(path) in READERS:
                rows |= {path.parent, path.parent.parent}
        return {path: sizes[path] for path, found in inner.items() if len(found) > 1 and path not in rows}

    def _walk(self) -> Iterator[Path]:
        for folder in self.folders:
            for at, inner, files in os.walk(folder):
                here = Path(at)
                deep = len(here.relative_to(folder).parts)
                inner[:] = sorted(n for n in inner if deep < DEPTH and n[0] not in "._" and not self._apart(here / n))
                yield from (here / name for name in sorted(files) if name[0] != ".")


def _is_model(path: Path) -> bool:
    """Whether a file is the configuration of a whole model, with weights beside it."""
    weights = path.name == "config.json" and path.is_file() and any(path.parent.glob("*.safetensors"))
    if not weights:
        return False
    try:
        told = read_json(path)
    except LuthierError:  # whoever trains on it is told
        return False
    return isinstance(told, dict) and bool(told.get("architectures"))


def _unknown(what: str, name: str, expected: str) -> Refusal:
    return Refusal(404, f"there is no {what} {name!r:.200} here; expected {expected}.", param=what, code="not_found")
