"""The command line. Each file of `commands` is one command: a dataclass whose fields are its flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from luthier.core.errors import LuthierError

USAGE, INTERRUPTED = 2, 130
AFTER = {
    "train": "continue with --resume",
    "federate": "continue with --resume",
    "compare": "the same command goes on where it was stopped",
}
"""How interrupted commands are continued."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input (told in one line), 130 when interrupted.

    Other exceptions are bugs and keep their traceback; `LUTHIER_DEBUG=1` shows that of bad input as well.
    """
    from luthier.cli.output import plain_warnings, tell
    from luthier.core.first_import import quiet_imports

    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("LUTHIER_DEBUG"))
    try:
        with plain_warnings(), quiet_imports():
            _run(tokens)
    except LuthierError as error:
        if debug:
            raise
        tell("error", str(error))
        return USAGE
    except KeyboardInterrupt:
        tell("stopped", _after_interrupt(tokens))
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _run(tokens: list[str]) -> None:
    from luthier.cli.parse import parse

    if (ready := parse(tokens)) is not None:
        command, given = ready
        command.run(given)


def _after_interrupt(tokens: list[str]) -> str:
    return AFTER.get(tokens[0] if tokens else "", "nothing was written")
