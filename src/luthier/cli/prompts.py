"""Prompts as commands take them: arguments, the lines of a file, or the standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from luthier.core.errors import LuthierError


def read_prompts(prompts: Sequence[str], file: Path | None, command: str) -> list[str]:
    """The prompts from wherever they stand; empty lines of a file are none."""
    if prompts and file:
        raise LuthierError("prompts stand on the command line and in --file; give one of the two.")
    if prompts:
        return list(prompts)
    if file is not None:
        try:
            text = file.expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise LuthierError(f"cannot read {file}: {error.strerror}.") from None
        found = [line for line in text.splitlines() if line.strip()]
    else:
        text = "" if sys.stdin.isatty() else sys.stdin.read().strip()
        found = [text] if text else []
    if not found:
        raise LuthierError(f'no prompt; give one, as in `luthier {command} MODEL "Hello"`, or --file.')
    return found
