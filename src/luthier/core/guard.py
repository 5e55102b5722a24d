"""One guard around other people's code: whatever it raises is told in a line, with the file, row or step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.core.errors import LuthierError

LONGEST = 300
"""Characters of a reason that are told."""
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def guarded(what: str, refusal: type[LuthierError] = LuthierError) -> Iterator[None]:
    """Any exception in the block becomes a `refusal` that says `what: reason`; a `LuthierError` passes as it is.

    For libraries, templates, scorers and users' functions on input that nobody has checked: what they raise on it is
    no bug of theirs or ours, and they document only some of it (`RecursionError` and `MemoryError` are among it).
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        raise refusal(f"{what}: {reason(error)}.") from error


@contextmanager
def written(what: str, after: str = "") -> Iterator[None]:
    """As `guarded`, around what writes; a full disk is called one, and `after` says how to go on."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        advice = f" Make space first. {after}" if is_full(error) else f" {after}"
        raise LuthierError(f"{what} cannot be written ({reason(error)}).{advice.rstrip()}") from error


def is_full(error: BaseException) -> bool:
    """Returns whether a disk or a quota had no room, as Python, Rust (safetensors) or C++ (torch.save) say it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return "No space left" in str(error) or "PytorchStreamWriter failed writing" in str(error)


def reason(error: BaseException, bare: bool = False) -> str:
    """Returns what an exception says, in one short line; `bare`, without its type where it says anything."""
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(said.split()).rstrip(".")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if bare and text else named
