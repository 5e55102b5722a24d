"""Adapters as commands take them: an adapter's folder, or the run folder that holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError, near

SPEC = "adapter.json"


def is_adapter(path: str | Path) -> bool:
    """Whether a path is a folder with an adapter, or a run folder with one."""
    folder = Path(path).expanduser()
    return (folder / SPEC).is_file() or (folder / "adapter" / SPEC).is_file()


def adapter_folder(path: str | Path) -> Path:
    """The folder that holds `adapter.json`; raises `LuthierError` when there is none."""
    from luthier.core.files import recover

    folder = Path(path).expanduser()
    for each in (folder, folder / "adapter"):
        recover(each)
    found = next((each for each in (folder, folder / "adapter") if (each / SPEC).is_file()), None)
    if found is not None:
        return found
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if is_adapter(p)] if folder.parent.is_dir() else []
        raise LuthierError(f"no adapter folder {path}{near(folder.name, beside) or '.'}")
    raise LuthierError(f"{path} holds no adapter ({SPEC} is not there); give a run folder or an adapter's.")


def read_adapter(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """(folder, spec) of an adapter."""
    from luthier.core.store import read_spec

    folder = adapter_folder(path)
    return folder, read_spec(folder)
