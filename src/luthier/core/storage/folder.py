"""Where an adapter lies: in its own folder, or in the run folder that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from luthier.core.errors import LuthierError, near
from luthier.core.files import steady
from luthier.core.paths import path_of
from luthier.core.storage.format import SPEC, Spec, read


def adapter_at(path: str | Path) -> Path | None:
    """Returns the folder with `adapter.json`, which is `path` or its `adapter`; None where neither has one."""
    folder = path_of(path, "no adapter folder")
    return next((each for each in (folder, folder / "adapter") if holds_adapter(each)), None)


def holds_adapter(folder: Path) -> bool:
    """Returns whether `adapter.json` is in this very folder, also while another process replaces it."""
    with steady(folder):
        return (folder / SPEC).is_file()


def adapter_folder(path: str | Path) -> Path:
    """Returns `adapter_at`; raises `LuthierError` when there is none."""
    if found := adapter_at(path):
        return found
    folder = path_of(path)
    if not folder.is_dir():
        there = folder.parent.glob(f"*/{SPEC}"), folder.parent.glob(f"*/adapter/{SPEC}")
        beside = {file.relative_to(folder.parent).parts[0] for each in there for file in each}
        raise LuthierError(f"no adapter folder {path}{near(folder.name, sorted(beside))}")
    raise LuthierError(f"{path} holds no adapter ({SPEC} is not there); give a run folder or an adapter's.")


def read_adapter(path: str | Path) -> tuple[Path, Spec]:
    """Reads (folder, spec) of an adapter; raises `LuthierError` where there is none, and for a damaged spec."""
    folder = adapter_folder(path)
    with steady(folder):
        return folder, read(folder)


Check = Callable[[Path], object]
_CHECKS: ContextVar[tuple[Check, ...]] = ContextVar("luthier_checks_of_adapters", default=())


@contextmanager
def checked_by(check: Check) -> Iterator[None]:
    """Within the context, `check(folder)` looks at every adapter before it is loaded; it raises for one it refuses."""
    before = _CHECKS.set((*_CHECKS.get(), check))
    try:
        yield
    finally:
        _CHECKS.reset(before)


def checks_adapters() -> bool:
    """Returns whether the context looks at adapters before they are loaded."""
    return bool(_CHECKS.get())


def check_loaded(folder: Path) -> None:
    """Raises what the checks of the context raise for an adapter that is about to be loaded."""
    for check in _CHECKS.get():
        check(folder)
