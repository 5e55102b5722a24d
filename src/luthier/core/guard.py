"""One guard around other people's code: whatever it raises is told in a line, with the file, row or step."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from luthier.core.errors import LuthierError

LONGEST = 300
"""Characters of a reason that are told."""
FULL = (errno.ENOSPC, errno.EDQUOT)
SAID_FULL = (
    *("No space left", "Disk quota exceeded", "database or disk is full"),
    *("PytorchStreamWriter failed writing", "inline_container.cc", "iostream error"),
)
"""How a full disk is told of without a number: by Rust (safetensors, tokenizers) and SQLite, then by C++ (torch.save,
which tells of nothing else while it writes)."""
Advice = str | Callable[[], str]
"""What to do, or what finds that out once it is needed."""


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
def written(what: str, after: Advice = "") -> Iterator[None]:
    """As `guarded`, around what writes; a full disk is called one, and `after` says how to go on."""
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        raise _unwritten(what, error, after) from error


@contextmanager
def on_disk(what: str, after: Advice = "", full_alone: bool = False) -> Iterator[None]:
    """As `written`, around work of our own that writes: any other exception than the machine's is a bug, and stays one.

    `full_alone`: of what the machine refuses, a full disk only, for work that also reads.
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        if not (is_full(error) if full_alone else is_of_disk(error)):
            raise
        raise _unwritten(what, error, after) from error


def _unwritten(what: str, error: Exception, after: Advice) -> LuthierError:
    advice = f"{' Make space first.' if is_full(error) else ''} {after if isinstance(after, str) else after()}"
    return LuthierError(f"{what} cannot be written ({reason(error)}).{advice.rstrip()}")


def is_of_disk(error: BaseException) -> bool:
    """Returns whether an error is the machine's: of the operating system, or of a library's that met a full disk."""
    return isinstance(error, OSError) or is_full(error)


def is_full(error: BaseException) -> bool:
    """Returns whether a disk or a quota had no room; of a `LuthierError`, whether that is what it was made of.

    Errors of values and keys quote what was given, which may say anything.
    """
    if isinstance(error, LuthierError):
        return error.__cause__ is not None and is_full(error.__cause__)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return not isinstance(error, ValueError | LookupError) and any(words in str(error) for words in SAID_FULL)


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
