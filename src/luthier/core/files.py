"""Folders that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError

LARGEST_JSON = 32 * 2**20


def cache_root() -> Path:
    """Where everything that can be made again lies: `$LUTHIER_CACHE`, by default `~/.cache/luthier`."""
    return Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier").expanduser()


def must_be_free(out: str | Path) -> Path:
    """The folder `out`, which must not exist yet (or be empty), so that nothing is lost."""
    folder = Path(out).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise LuthierError(f"{out} exists and is not empty; name a new folder, or remove it first.")
    return folder


def free_folder(folder: str | Path, mark: str, what: str) -> Path:
    """The folder, which must be new, empty or hold the file `mark` of an earlier `what`, so that nothing is lost."""
    target = Path(folder).expanduser()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / mark).exists()):
        raise LuthierError(f"{target} holds something else than {what}; name a new folder (out).")
    return target


@contextmanager
def committed(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well: files synced, then one rename.

    An older `folder` steps aside under a hidden name until the new one stands (`recover` finds it after a kill).
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    temporary.chmod(0o777 & ~_umask())  # as mkdir would have made it
    try:
        yield temporary
        _sync(temporary)
        aside = _aside(folder)
        if folder.exists():
            os.rename(folder, aside)
        os.rename(temporary, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def recover(folder: Path) -> None:
    """Undoes a replacement that was killed between its two renames."""
    folder = Path(folder)
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """A JSON file; damage, duplicate keys, absurd size and nesting raise `LuthierError`."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise LuthierError(f"{path} is larger than {LARGEST_JSON >> 20} MiB; that is no file of ours.")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise LuthierError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise LuthierError(f"{path} cannot be read as JSON ({type(error).__name__}: {error}).") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise LuthierError("a JSON object holds the same key twice; the file is damaged or forged.")
    return made


def write_json(path: Path, value: Any) -> None:
    """Readable JSON, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
