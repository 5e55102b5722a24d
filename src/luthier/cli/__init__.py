"""The command line. Each file of `commands` is one command: a dataclass whose fields are its flags."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from luthier.cli.stopped import NOTHING
from luthier.core.errors import LuthierError
from luthier.core.guard import is_of_disk, reason

USAGE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input (told in one line), 130 when interrupted.

    Other exceptions are bugs and keep their traceback; `LUTHIER_DEBUG=1` shows that of bad input as well.
    """
    from luthier.cli.output import plain_warnings, tell
    from luthier.core.first_import import quiet_imports

    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("LUTHIER_DEBUG"))
    if sys.platform == "win32":
        break_as_ctrl_c()
    try:
        with plain_warnings(), quiet_imports():
            return _run(tokens)
    except LuthierError as error:
        if debug:
            raise
        tell("error", str(error))
        return USAGE
    except KeyboardInterrupt:
        tell("stopped", NOTHING)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # of the machine: a full disk, a folder that is closed, a name that is too long
        if debug or not is_of_disk(error):
            raise
        name = getattr(error, "filename", None)
        tell("error", f"{reason(error)}{f' ({str(name)[:80]})' if name else ''}.")
        return USAGE


def break_as_ctrl_c() -> None:
    """Has Ctrl-Break of Windows interrupt a command, as the studio stops what it started."""
    signal.signal(signal.SIGBREAK, signal.default_int_handler)  # pyright: ignore[reportAttributeAccessIssue]


def _run(tokens: list[str]) -> int:
    from luthier.cli.output import tell
    from luthier.cli.parse import parse

    if (ready := parse(tokens)) is None:
        return 0
    command, given = ready
    try:
        with command.within():
            command.run(given)
    except KeyboardInterrupt:
        tell("stopped", command.stopped(given))
        return INTERRUPTED
    return 0
