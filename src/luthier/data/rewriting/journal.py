"""A file of rows that is written bit by bit: a kill loses nothing, and what goes on writes the very same file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import real_file
from luthier.core.guard import written
from luthier.core.records import recorded, replace_json


@dataclass
class Journal:
    """Rows on their way to the file `out`: they lie in `.out.part` beside it, and how far they go in `.out.state`."""

    out: Path
    inputs: dict[str, Any]
    """What the rows follow from; going on with others is refused."""
    done: int = 0
    """The number of input rows that are through."""
    bytes: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    """Counts that go on with the file."""
    replaces: bool = False
    """Whether a file of that name may be replaced: it was asked for, or the file is this one, stopped while closing."""

    @property
    def part(self) -> Path:
        """The file while it is written."""
        return self.out.with_name(f".{self.out.name}.part")

    @property
    def state(self) -> Path:
        """What tells how far it goes."""
        return self.out.with_name(f".{self.out.name}.state")

    def open(self, resume: bool, overwrite: bool) -> None:
        """Finds where to go on; raises for a file that would be lost, or one that was begun with other inputs."""
        if resume and overwrite:
            raise LuthierError("resume goes on with a file and overwrite starts again; choose one.")
        self.out = real_file(self.out)
        if not self.out.parent.is_dir():
            raise LuthierError(f"{self.out.parent} is not a folder, so {self.out} cannot be written there.")
        begun, self.replaces = self.state.is_file(), overwrite
        if begun and resume:
            with recorded(self.state) as stored:
                self._continue(stored)
        if self.out.exists() and not self.replaces:
            raise LuthierError(f"{self.out} exists; replace it (overwrite), or choose another file (out).")
        if begun and not (resume or overwrite):
            raise LuthierError(f"{self.out} was begun before; go on with it (resume), or start again (overwrite).")
        with written(str(self.out)):
            if not (begun and resume):
                self.state.unlink(missing_ok=True)
                self.part.unlink(missing_ok=True)
            with open(self.part, "ab") as file:
                file.truncate(self.bytes)

    def _continue(self, stored: Mapping[str, Any]) -> None:
        differing = [key for key, value in self.inputs.items() if stored["inputs"].get(key) != value]
        if differing:
            raise LuthierError(
                f"{self.out} was begun with another {', '.join(differing)}; give the same again, or start anew "
                "(overwrite)."
            )
        self.replaces = stored.get("replaces", False)
        if self.replaces and not self.part.is_file() and self.out.is_file():
            os.replace(self.out, self.part)  # it had its name, and was stopped before its state was gone
        there = self.part.stat().st_size if self.part.is_file() else 0
        if there < stored["bytes"]:
            raise LuthierError(f"{self.part} is shorter than it was; start again (overwrite).")
        self.done, self.bytes, self.kept = stored["done"], stored["bytes"], stored["kept"]

    def add(self, rows: Sequence[Mapping[str, Any]], done: int, kept: Mapping[str, Any]) -> None:
        """Adds rows, those of the next `done` input rows, and the counts so far; they are on disk when it returns."""
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode("utf-8")
        with written(str(self.out), "Go on with resume."):
            with open(self.part, "ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            self.done, self.bytes, self.kept = self.done + done, self.bytes + len(text), dict(kept)
            self._note()

    def _note(self) -> None:
        told = {"inputs": self.inputs, "done": self.done, "bytes": self.bytes, "kept": self.kept}
        replace_json(self.state, told | {"replaces": self.replaces})

    def close(self, make: Callable[[Path, Path], None] | None = None) -> None:
        """Gives the file its name; `make(part, new)` writes another of the rows in `part`, which gets the name."""
        with written(str(self.out), "Go on with resume."):
            self.replaces = True
            self._note()
            if make is None:
                os.replace(self.part, self.out)
            else:
                new = self.out.with_name(f".{self.out.name}.new")
                make(self.part, new)
                os.replace(new, self.out)
            self.state.unlink(missing_ok=True)
            self.part.unlink(missing_ok=True)
