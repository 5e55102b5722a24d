"""Atomic folders and files: they appear completely or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from luthier.core.errors import LuthierError
from luthier.core.guard import on_disk, reason
from luthier.core.locks import lock
from luthier.core.paths import path_of

LOCK, OWNER = ".owner.lock", ".owner.json"
"""In a folder while a process works in it (`luthier.core.owner`), and who that is."""
TRACES = (LOCK, OWNER, f".{OWNER}")


def cache_root() -> Path:
    """Returns the cache folder: `$LUTHIER_CACHE`, by default `~/.cache/luthier`."""
    return path_of(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier")


def located(source: str, folder: Path) -> str:
    """Returns the source, beside a file in `folder` that names it if it is there."""
    beside = folder / source
    relative = not os.path.isabs(os.path.expanduser(source))
    return str(beside) if relative and os.path.exists(beside) else source


def must_be_free(out: str | Path) -> Path:
    """Returns the folder `out`, which must not exist yet (or be empty), so that nothing is lost."""
    folder = path_of(out)
    if _no_folder(folder) or (folder.is_dir() and any(folder.iterdir())):
        raise LuthierError(f"{out} exists and is not empty; name a new folder, or remove it first.")
    return folder


def refuse_other(folder: Path) -> None:
    """Raises for what is there and no folder: a rename would put one in the place of a file, a pipe or a device."""
    if _no_folder(folder):
        raise LuthierError(f"{folder} exists and is not a folder; name a new one.")


def refuse_special(path: Path) -> None:
    """Raises for what is there and no file: a rename would put one in the place of a folder, a pipe or a device."""
    if path_of(path).exists() and not path.is_file():
        raise LuthierError(f"{path} exists and is not a regular file; name another.")


def real_file(path: Path) -> Path:
    """The file to write: where a link leads to another place, that one, so that the link stays. Raises for what is
    there and no file."""
    refuse_special(path)
    return _real(path)


def _no_folder(path: Path) -> bool:
    """Whether something else than a folder is there: a file, or a device that root could replace."""
    return path.exists() and not path.is_dir()


def free_folder(folder: str | Path, mark: str, what: str) -> Path:
    """The folder, which must be new, empty or hold the file `mark` of an earlier `what`, so that nothing is lost."""
    target = path_of(folder)
    held = target.is_dir() and any(path.name not in TRACES for path in target.iterdir())
    if _no_folder(target) or (held and not (target / mark).exists()):
        raise LuthierError(f"{target} holds something else than {what}; name a new folder (out).")
    return target


def claimed(folder: str | Path, mark: str, what: str, resume: bool, overwrite: bool) -> Path:
    """Returns the folder for `what` (such as "an edit"), whose file `mark` tells of one that is there.

    Changes nothing. Raises `LuthierError` where the folder cannot be used, and where it holds one that is neither to be
    gone on with nor to be replaced.
    """
    if resume and overwrite:
        raise LuthierError(f"resume continues {what} and overwrite starts again; choose one.")
    target = free_folder(folder, mark, what)
    if (target / mark).is_file() and not (resume or overwrite):
        raise LuthierError(
            f"{target} holds {what} already: go on with it (resume), replace it (overwrite), or choose another folder "
            "(out)."
        )
    return target


AS_IT_WAS = "What was there before is as it was."


@contextmanager
def committed(folder: str | Path, advice: str = AS_IT_WAS) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well: all synced, then renamed; `advice` is told
    where it cannot be written. What fails once the new folder stands is told as that.

    An older `folder` steps aside under a hidden name until the new one stands (`recover` finds it after a kill). The
    process that writes holds a lock on its temporary folder, which a kill lets go: what killed processes left behind is
    removed here, what others are writing is not. Of several that commit at a time, the last one stays.
    """
    folder = _real(folder)
    temporary, held = None, None
    try:
        with on_disk(str(folder), partial(_told, folder, advice)):
            refuse_other(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _alone(folder.parent):
                _clean(folder)
                temporary = _fresh(folder)
                held = lock(temporary)
            yield temporary
            _sync(temporary)
            with _alone(folder.parent):
                _put(temporary, folder)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
            held()


def _put(temporary: Path, folder: Path) -> None:
    """Renames, each on disk before the next. The old folder goes under a name that nobody recovers from."""
    aside = _aside(folder)
    _restore(folder)
    refuse_other(folder)
    try:
        if folder.exists():
            os.rename(folder, aside)
            sync_folder(folder.parent)
        os.rename(temporary, folder)
    except BaseException:
        with suppress(OSError):  # `_told` says where it is then
            _restore(folder)
        raise
    with _standing(folder, UNSYNCED):
        sync_folder(folder.parent)
    with _standing(folder, "the older one still takes space beside it, until it is next written"):
        if aside.exists():
            _drop(aside, folder)


UNSYNCED = "a power cut may still undo that"


@contextmanager
def _standing(folder: Path, left: str) -> Iterator[None]:
    """What the machine refuses in the block is told as what it leaves undone: the new folder is there."""
    try:
        yield
    except OSError as error:
        raise LuthierError(f"{folder} is written, but {left} ({reason(error)}).") from error


def _told(folder: Path, advice: str) -> str:
    """What is said where the new folder does not stand."""
    if os.path.exists(_aside(folder)) and not os.path.exists(folder):
        return f"What was there before lies in {_aside(folder)} until it is next read or written."
    return advice


def recover(folder: str | Path) -> None:
    """Undoes a replacement that was killed between its two renames; waits for one that is under way."""
    folder = _real(folder)
    if folder.exists() or not os.path.exists(_aside(folder)):
        return
    try:
        with _alone(folder.parent):
            _restore(folder)
    except OSError as error:
        raise LuthierError(
            f"{folder} was being replaced when that was killed, and cannot be put back ({error}); "
            f"rename {_aside(folder)} to it."
        ) from error


def discard(folder: str | Path) -> None:
    """Removes a committed folder with all that killed processes left of it beside it."""
    folder = _real(folder)
    if not folder.parent.is_dir():
        return
    with _alone(folder.parent):
        _clean(folder)
        if folder.is_dir():
            _drop(folder, folder)


@contextmanager
def steady(folder: str | Path) -> Iterator[None]:
    """Keeps others from replacing `folder` while the context lasts, so that its files belong together."""
    folder = _real(folder)
    recover(folder)
    with _settled(folder.parent, glob.escape(folder.name)):
        yield


@contextmanager
def all_steady(parent: str | Path) -> Iterator[None]:
    """Keeps others from replacing any folder in `parent` while the context lasts."""
    with _settled(_real(parent), "*"):
        yield


@contextmanager
def _settled(parent: Path, names: str) -> Iterator[None]:
    """A shared lock on `parent`, taken when no folder of these names (a pattern) is aside."""
    while True:
        try:
            held = lock(parent, shared=True)
        except (PermissionError, FileNotFoundError, NotADirectoryError):
            held = None  # a folder may be read whose parent may not
            break
        aside = [path.with_name(path.name[1:-4]) for path in parent.glob(f".{names}.old")]
        killed = [folder for folder in aside if not folder.exists()]
        if not killed:
            break
        if held is not None:
            held()
        for folder in killed:
            recover(folder)
    try:
        yield
    finally:
        if held is not None:
            held()


def _real(folder: str | Path) -> Path:
    """The folder itself: where a link leads to another place, that is what is replaced."""
    return Path(os.path.realpath(path_of(folder)))


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Nobody else commits or recovers in `parent` meanwhile."""
    held = lock(parent)
    try:
        yield
    finally:
        if held is not None:
            held()


def _fresh(folder: Path) -> Path:
    """An empty hidden folder beside `folder`."""
    made = folder.parent / f".{folder.name}.new-{secrets.token_hex(4)}"
    made.mkdir()
    return made


def _clean(folder: Path) -> None:
    """Brings `folder` back if a kill left it aside, and removes what killed processes left; in `_alone`."""
    _restore(folder)
    if _aside(folder).exists():
        _drop(_aside(folder), folder)
    left = re.compile(re.escape(f".{folder.name}.new-") + "[0-9a-f]{8}")
    for path in [each for each in folder.parent.iterdir() if left.fullmatch(each.name)]:
        with suppress(OSError, LuthierError):  # its writer lives, or has just finished
            held = lock(path, patience=0)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                held()


def _restore(folder: Path) -> None:
    if _aside(folder).exists() and not folder.exists():
        os.rename(_aside(folder), folder)
        sync_folder(folder.parent)


def _drop(path: Path, folder: Path) -> None:
    """Removes a folder in one move, so that no half of it keeps its name; then what it held."""
    gone = _fresh(folder)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"


def _sync(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_file() or (path.is_dir() and not path.is_symlink()):
            sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Puts a folder, or a file, on disk; Windows has no such thing for folders, and wants files open for writing."""
    if os.name == "nt" and folder.is_dir():
        return
    handle = os.open(folder, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
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


def own_file(folder: Path, name: str) -> Path:
    """The regular file `name` of a folder. A link may lead elsewhere in the folder, or into a hub cache that holds it.

    Raises `LuthierError` for one that is missing, leads out of the folder, or is a device or a pipe.
    """
    path, root = folder / name, _real(folder)
    target = _real(path)
    if not path.exists():
        raise LuthierError(f"{path} is missing; the folder is incomplete.")
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.parent == blobs):
        raise LuthierError(f"{path} is a link that leads out of its folder (to {target}); put the file itself there.")
    if not target.is_file():
        raise LuthierError(f"{path} is not a regular file.")
    return path
