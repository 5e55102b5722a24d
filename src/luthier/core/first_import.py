"""The first import of large libraries, without what they report of this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

NOISY = ("torchao", "bitsandbytes", "torch.utils._pytree")
"""Loggers of what transformers imports where it is installed; each reports the kernels that are missing."""
_lock = Lock()
_levels: dict[str, int] = {}
"""The levels before the outermost context was entered."""
_inside = 0


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Holds `NOISY` to errors while the context lasts, in whichever threads it is entered, and puts them back."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _lock:
        _inside += 1
        for name in NOISY if _inside == 1 else ():
            _levels[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.ERROR)


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        for name in NOISY if not _inside else ():
            logging.getLogger(name).setLevel(_levels.pop(name))
