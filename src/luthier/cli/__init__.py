"""The command line. Each file of `commands` is one command: a dataclass whose fields are its flags."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from luthier.cli.stopped import NOTHING
from luthier.core.errors import LuthierError
from luthier.core.guard import is_of_disk, reason

USAGE, INTERRUPTED, TERMINATED = 2, 130, 143
AGAIN = 0.05
"""Seconds until a signal that was not heard comes again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers and service managers send it: it ends a command as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input (told in one line), 130 when interrupted, 143 when
    terminated.

    Other exceptions are bugs and keep their traceback; `LUTHIER_DEBUG=1` shows that of bad input as well.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("LUTHIER_DEBUG"))
    if sys.platform == "win32":
        break_as_ctrl_c()
    try:  # what is imported takes a while too, in which Ctrl-C is pressed
        from luthier.cli.output import plain_warnings
        from luthier.core.first_import import quiet_imports

        with terminable(), plain_warnings(), quiet_imports():
            return _run(tokens)
    except LuthierError as error:
        if debug:
            raise
        _tell("error", str(error))
        return USAGE
    except KeyboardInterrupt as error:
        _tell("stopped", NOTHING)
        return _code(error)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # of the machine: a full disk, a folder that is closed, a name that is too long
        if debug or not is_of_disk(error):
            raise
        name = getattr(error, "filename", None)
        _tell("error", f"{reason(error)}{f' ({str(name)[:80]})' if name else ''}.")
        return USAGE


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block, once; a second one ends the process. One that meets a finaliser comes
    again, and so does Ctrl-C. Where somebody else handles SIGTERM, as servers do, and in other threads, all is left
    alone."""
    alone = threading.current_thread() is not threading.main_thread()
    if alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner, coming = os.getpid(), list[threading.Timer]()

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:  # a process that was forked inside
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    def again(lost: sys.UnraisableHookArgs) -> None:
        """Of what is raised in a finaliser, or where a weak reference ends, Python lets go; the signal comes again."""
        if not isinstance(lost.exc_value, KeyboardInterrupt) or os.getpid() != owner:
            unheard(lost)
            return
        number = signal.SIGTERM if isinstance(lost.exc_value, Terminated) else signal.SIGINT
        if number == signal.SIGTERM:
            signal.signal(number, end)
        coming.append(threading.Timer(AGAIN, os.kill, (owner, number)))
        coming[-1].start()  # behind the end of what it met

    unheard = sys.unraisablehook
    sys.unraisablehook = again
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        for each in coming:
            each.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = unheard


def break_as_ctrl_c() -> None:
    """Has Ctrl-Break of Windows interrupt a command, as the studio stops what it started."""
    signal.signal(signal.SIGBREAK, signal.default_int_handler)  # pyright: ignore[reportAttributeAccessIssue]


def _run(tokens: list[str]) -> int:
    from luthier.cli.parse import parse

    if (ready := parse(tokens)) is None:
        return 0
    command, given = ready
    try:
        with command.within():
            command.run(given)
    except KeyboardInterrupt as error:
        _tell("stopped", command.stopped(given))
        return _code(error)
    return 0


def _tell(kind: str, text: str) -> None:
    from luthier.cli.output import tell

    tell(kind, text)


def _code(error: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
