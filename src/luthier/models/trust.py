"""Whether code that comes with a model may run: never, unless it was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError

_TRUSTED = ContextVar("luthier_trusts_code_of_models", default=False)
REMEDY = (
    "It brings code of its own, which runs only where you say so. Read it, and if you trust it: --trust-remote-code "
    "(in Python, trust_remote_code=True of lt.model or lt.Run)."
)


def trusted() -> bool:
    """Returns what every `from_pretrained` and `from_config` is told, so that none of them asks on the terminal."""
    return _TRUSTED.get()


def config_at(path: str | Path, **source: Any) -> Any:
    """Returns the transformers configuration at a path. Where it names a kernel of the hub in place of attention, that
    is told and left out: it would be code of others."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trusted(), **source)
    for each in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        kernel = getattr(each, "_attn_implementation", None)
        if each is not None and isinstance(kernel, str) and "/" in kernel and not trusted():
            warnings.warn(
                f"the configuration of {path} names {kernel} for attention; its code is not run.", stacklevel=3
            )
            each._attn_implementation = None
    return config


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Within the context, models may bring code that is run (`trust`), or it is as it was around it."""
    before = _TRUSTED.set(trust or _TRUSTED.get())
    try:
        yield
    finally:
        _TRUSTED.reset(before)


@contextmanager
def explained(failed: str, why: Callable[[Exception], str]) -> Iterator[None]:
    """Any exception in the block becomes a `LuthierError`: what `failed`, and `why`; a `LuthierError` passes as it is.

    Where a model needs code of its own, the reason is what to do about that.
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:  # of readers of files that nobody has checked
        if "trust_remote_code" in str(error):
            raise LuthierError(f"{failed}. {REMEDY}") from error
        raise LuthierError(f"{failed}: {why(error)}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of what an exception says."""
    return str(error).strip().split("\n", 1)[0]
