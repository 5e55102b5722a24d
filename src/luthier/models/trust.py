"""Whether code that comes with a model may run: never, unless it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TRUSTED = ContextVar("luthier_trusts_code_of_models", default=False)
REMEDY = (
    "It brings code of its own, which runs only where you say so. Read it, and if you trust it: --trust-remote-code "
    "(in Python, trust_remote_code=True of lt.model or lt.Run)."
)


def trusted() -> bool:
    """Returns what every `from_pretrained` and `from_config` is told, so that none of them asks on the terminal."""
    return _TRUSTED.get()


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Within the context, models may bring code that is run (`trust`), or it is as it was around it."""
    before = _TRUSTED.set(trust or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(before)


def remedy(error: Exception) -> str:
    """Returns what to do where a model needs code of its own; empty for other errors."""
    return REMEDY if "trust_remote_code" in str(error) else ""
