"""Methods from elsewhere: folders that `LUTHIER_PATH` names, and installed packages with an entry point.

Both hold what `luthier/methods` holds: a folder for each axis, a file for each method in it. A package says so in its
pyproject.toml, where the name on the left is free and the one on the right is the package that has the folders:

    [project.entry-points."luthier.methods"]
    vera = "luthier_vera"                       # luthier_vera/forms/vera.py defines the class VeRA

Once `pip install` has put it in place, `lt.VeRA`, `luthier train --method vera` and the laws find it. Its files are
imported under their own names (`luthier_vera.forms.vera`), so relative imports within the package work. Nothing is
imported to find out which methods there are.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.core.deprecation import deprecated

GROUP = "luthier.methods"
"""The group of entry points that packages with methods declare."""
RENAMED = {"selections": "data"}
"""What the folder of an axis was called before."""


@dataclass(frozen=True)
class File:
    """A file of an axis, which is imported when its component is asked for."""

    name: str
    module: str
    """The full name of the module."""
    path: Path


def plugin_folders(axis: str) -> list[str]:
    """Returns `<folder>/<axis>` for every folder of `LUTHIER_PATH`; an axis package appends them to its `__path__`."""
    roots = [Path(r) for r in os.environ.get("LUTHIER_PATH", "").split(os.pathsep) if r]
    found = [root / axis for root in roots if (root / axis).is_dir()]
    return list(map(str, [*found, *_renamed(axis, roots)]))


def _renamed(axis: str, roots: Iterable[Path]) -> Iterator[Path]:
    """Folders under the former name of an axis that hold files of methods."""
    former = [root / RENAMED[axis] for root in roots] if axis in RENAMED else []
    for folder in former:
        if any(not file.name.startswith("_") for file in folder.glob("*.py")):
            deprecated(f"{folder} as a folder of {axis}", str(folder.with_name(axis)), until="0.3")
            yield folder


def installed_folders(axis: str) -> list[tuple[str, Path]]:
    """Lists the (full name, folder) of an axis in every installed package that has it."""
    return [(f"{package}.{axis}", place / axis) for package, place in _installed() if (place / axis).is_dir()]


def installed_files(axis: str) -> list[File]:
    """Returns the files of an axis in installed packages."""
    return [file for package, folder in installed_folders(axis) for file in files_in(package, str(folder))]


def files_in(package: str, folder: str) -> list[File]:
    """Returns the files of one folder of an axis. Those that open with `_` are private and hold no component."""
    return list(_listed(package, folder, changed(folder)))


def changed(folder: str) -> int:
    """Returns when something was put into a folder or taken out, in nanoseconds; 0 if there is none.

    Every `lt.LoRA` asks for the files of all axes, so that they are read again where this is another, as Python does
    with the folders of packages.
    """
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=512)
def _listed(package: str, folder: str, when: int) -> tuple[File, ...]:
    found = (m.name for m in pkgutil.iter_modules([folder]) if not m.name.startswith("_"))
    return tuple(File(name, f"{package}.{name}", _source(Path(folder), name)) for name in found)


def _source(folder: Path, name: str) -> Path:
    return folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"


@functools.cache
def _installed() -> tuple[tuple[str, Path], ...]:
    """(full name, folder) of every package that an entry point names, in the order of their names."""
    from importlib.metadata import entry_points

    points = sorted({(point.value, point.name) for point in entry_points(group=GROUP)})
    return tuple((value, place) for value, name in points for place in _places(value, name))


def _places(package: str, point: str) -> list[Path]:
    """The folders of a package, found without importing it; one that is missing is worth a warning."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    roots = (spec.submodule_search_locations if spec else None) or []
    found = [place for root in roots if (place := Path(root, *rest)).is_dir()]
    if not found:
        warnings.warn(
            f"the entry point {point} = {package!r} of {GROUP} names no package that is installed, so its methods are "
            "left out. It takes the package that holds the folders of the axes, such as forms.",
            stacklevel=2,
        )
    return found
