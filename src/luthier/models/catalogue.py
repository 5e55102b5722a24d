"""The catalogue: models that the package indexes carry, read from `catalogue.toml`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.core.toml import tomllib

CATALOGUE = Path(__file__).with_name("catalogue.toml")

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_PACKAGE = re.compile(r"(@[a-z0-9-]+/)?[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class File:
    """One file inside a package, by its path there and its sha256."""

    package: str
    path: str
    sha256: str
    version: str = ""
    """The package's version, where it is not the entry's."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the catalogue: where it comes from, what it must hash to, what it is."""

    name: str
    description: str
    task: str
    """The task it is offered for."""
    architecture: str
    """The transformers `model_type`."""
    parameters: int
    licence: str
    registry: str
    """`pypi` or `npm`."""
    version: str
    """The version of every package, but of those whose files say another."""
    size_bytes: int
    """What is downloaded, in bytes."""
    format: str
    """The module of `luthier.models.convert` that reads the weights."""
    weights: str
    """The name of the weights file; when no file has it, the files are its parts, in order."""
    sha256: str
    """The sha256 of the weights file."""
    files: tuple[File, ...]
    conversion: int = 1
    """Goes up when other files are made of the same weights: a cache of before is then made anew."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that hold the files, in order."""
        return tuple(dict.fromkeys(file.package for file in self.files))

    def version_of(self, package: str) -> str:
        """Returns the version of a package."""
        return next(file.version for file in self.files if file.package == package) or self.version


def catalogue(path: Path = CATALOGUE) -> list[Entry]:
    """Returns every entry, in the order of the file; a malformed one raises `LuthierError`."""
    with open(path, "rb") as stream:
        return [_entry(name, values) for name, values in tomllib.load(stream).items()]


def named(name: str) -> Entry:
    """Returns the entry `name`; an unknown name raises with near ones."""
    entries = {entry.name: entry for entry in catalogue()}
    if name not in entries:
        known = ", ".join(entries)
        raise LuthierError(f"no model named {name!r} in the catalogue{near(name, entries) or '.'} It has: {known}.")
    return entries[name]


def _entry(name: str, values: dict[str, Any]) -> Entry:
    fields = {field.name for field in dataclasses.fields(Entry)} - {"name"}
    usual = {"conversion": 1}
    if fields != set(usual | values):
        odd = ", ".join(sorted(fields ^ set(usual | values)))
        raise LuthierError(f"model {name!r} of the catalogue lacks or does not know: {odd}.")
    files = tuple(File(**file) for file in values["files"])
    entry = Entry(**{**values, "name": name, "files": files})
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    """Names become folders and arguments of pip and npm, so only plain ones pass."""
    checks = [(entry.name, _NAME), (entry.format, _NAME), (entry.sha256, _SHA256)]
    checks += [(file.version, _VERSION) for file in entry.files if file.version]
    checks += [(file.package, _PACKAGE) for file in entry.files]
    checks += [(file.sha256, _SHA256) for file in entry.files]
    for value, pattern in checks:
        if not pattern.fullmatch(value):
            raise LuthierError(f"model {entry.name!r} of the catalogue: {value!r} is not allowed.")
    for path in [entry.weights, *(file.path for file in entry.files)]:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
            raise LuthierError(f"model {entry.name!r} of the catalogue: the path {path!r} leaves.")
