"""Folders of the cache: made once, checked whenever they are used, listed and cleared."""

from __future__ import annotations

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import cache_root, committed, discard, sha256
from luthier.core.locks import lock as locked
from luthier.core.records import read_json, replace_json

MANIFEST = ".manifest.json"
"""In a cached folder: size, time and SHA-256 of every file, when all was last read, and what it is."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


ELSEWHERE = "Or set LUTHIER_CACHE to a folder with room."


def cached(kind: str, name: str, build: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder `name` among the cached ones of a kind, made first if need be; `build(folder)` fills an empty one and
    returns what `listed` says of it.

    It is there whole or not at all, and processes that want the same wait for one another. At each use the size and
    the time of its files are compared; all is read (SHA-256) at the first use since the machine started, since a
    crash can leave a file of the right size with other contents. What is damaged is told, removed and made again.
    """
    from filelock import FileLock

    folder = cache_root() / kind / name
    if ready(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{name}.lock")
        lock.acquire()
    except OSError as error:
        raise LuthierError(
            f"cannot write the cache {folder.parent}: {error.strerror}. Set LUTHIER_CACHE to a folder that can be "
            "written."
        ) from None
    try:
        if not ready(folder, quiet=True):
            with committed(folder, ELSEWHERE) as making:
                seal(making, build(making))
    finally:
        lock.release()
    return folder


def ready(folder: Path, quiet: bool = False) -> bool:
    """Whether a cached folder is there and as it was made; what is damaged is told, and does not count."""
    if not folder.is_dir():
        return False
    wrong = damage(folder)
    if wrong is not None and not quiet:
        warnings.warn(f"{folder} is damaged ({wrong}); it is replaced.", stacklevel=3)
    return wrong is None


def writable(kind: str) -> bool:
    """Returns whether folders of a kind can be made in the cache."""
    folder = cache_root() / kind
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder that is complete."""
    files = {name: _entry(folder / name) for name in _names(folder)}
    replace_json(folder / MANIFEST, {"files": files, "read": _boot(), "about": dict(about)})


def damage(folder: Path, thorough: bool = False) -> str | None:
    """What is wrong with a cached folder, or None; `thorough` reads every file."""
    try:
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else None
        if manifest is None:  # of a version before there were manifests: what is there now is what it is
            with suppress(OSError):
                seal(folder, {})
            return None
        files, boot = manifest["files"], _boot()
        names = _names(folder)
        if odd := sorted(set(names) ^ set(files)):
            return f"{odd[0]} is {'missing' if odd[0] in files else 'none of its files'}"
        again = thorough or manifest["read"] != boot
        wrong = next((told for name in names if (told := _differs(folder / name, files[name], again))), None)
        if wrong is None and (again or any(_moved(folder / name, files[name]) for name in names)):
            _renew(folder, manifest, boot)
        return wrong
    except (LuthierError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    except OSError as error:
        return str(error)


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")


def _entry(path: Path) -> dict[str, Any]:
    state = path.stat()
    return {"bytes": state.st_size, "time": state.st_mtime_ns, "sha256": sha256(path)}


def _moved(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.stat().st_mtime_ns != entry["time"]


def _differs(path: Path, entry: Mapping[str, Any], again: bool) -> str | None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{path.name} has {size:,} bytes and had {entry['bytes']:,}"
    if (again or _moved(path, entry)) and sha256(path) != entry["sha256"]:
        return f"{path.name} has other contents than it had"
    return None


def _renew(folder: Path, manifest: dict[str, Any], boot: str) -> None:
    """Notes that all was read, and the times as they are now; a cache that cannot be written is read anew each time."""
    files = {name: entry | {"time": (folder / name).stat().st_mtime_ns} for name, entry in manifest["files"].items()}
    try:
        replace_json(folder / MANIFEST, manifest | {"files": files, "read": boot})
    except OSError:
        return


def _boot() -> str:
    """What tells this start of the machine from others; empty where the system does not say."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Entry:
    """Something in the cache."""

    kind: str
    """The folder of the cache that it lies in: models, encoded, measured."""
    name: str
    path: Path
    bytes: int
    about: Mapping[str, Any]


def listed() -> list[Entry]:
    """Returns all that the cache holds, by kind and name."""
    root = cache_root()
    kinds = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [_listed(path) for kind in kinds for path in sorted(kind.iterdir()) if path.name[0] != "."]


def _listed(path: Path) -> Entry:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    try:
        about = read_json(path / MANIFEST)["about"]
    except (LuthierError, KeyError, TypeError):
        about = {}
    return Entry(path.parent.name, path.name, path, sum(each.stat().st_size for each in files), about)


def sweep(kinds: Collection[str]) -> int:
    """Removes what killed processes left half made among these kinds; returns how many bytes that were. What a living
    process makes is under its lock."""
    from filelock import FileLock, Timeout

    freed = 0
    for lock in [path for kind in kinds for path in (cache_root() / kind).glob(".*.lock")]:
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):
            name = re.escape(lock.name.removesuffix(".lock"))
            left = re.compile(rf"{name}\.(making-.*|new-[0-9a-f]{{8}})")
            for path in [each for each in lock.parent.iterdir() if left.fullmatch(each.name)]:
                freed += _listed(path).bytes
                shutil.rmtree(path, ignore_errors=True)
    return freed + sum(_swept(cache_root() / kind) for kind in kinds)


HALF = re.compile(r"\..+\.(jsonl\.|new-)[0-9a-f]{8}")
"""Names of what is half made without a lock of its name: files of rows, and folders that `committed` fills."""
OLD = 3600.0
"""Seconds after which nobody writes such a file any more."""


def _swept(kind: Path) -> int:
    """Removes what is old and half made, unless a living process holds it; returns its bytes."""
    freed = 0
    for path in [each for each in kind.glob(".*") if HALF.fullmatch(each.name)]:
        with suppress(OSError, LuthierError):  # its writer lives, or has just finished
            if time.time() - path.stat().st_mtime > OLD:
                freed += _dropped(path)
    return freed


def _dropped(path: Path) -> int:
    size, held = _listed(path).bytes, locked(path, patience=0) if path.is_dir() else None
    if path.is_file():
        path.unlink()
        return size
    if held is None:  # nothing tells whether somebody fills it
        return 0
    shutil.rmtree(path, ignore_errors=True)
    held()
    return size


def remove(entry: Entry) -> None:
    """Takes something out of the cache."""
    if entry.path.is_dir() and not entry.path.is_symlink():
        discard(entry.path)
    else:
        os.unlink(entry.path)
