"""Prompts as commands take them: arguments, the lines of a file, or the standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.data import Example

LINES = (".txt", ".md", "")
"""Files with one prompt per line."""


def prompts_or_rows(
    prompts: Sequence[str], file: Path | None, columns: str | None, command: str, task: str = "causal-lm"
) -> list[str] | list[Example]:
    """As `read_prompts`, but of a file with rows the examples up to their answers, as the task reads them."""
    from luthier.cli.output import tell_unread
    from luthier.data import load_prompts

    rows = holds_rows(file)
    if columns is not None and not rows:
        raise LuthierError("--columns names columns of the rows of --file, and here are none; leave it out.")
    if not rows or prompts:
        return read_prompts(prompts, file, command)
    return load_prompts(str(file), named=columns, task=task, unread=lambda names: tell_unread(names, str(file)))


def holds_rows(file: Path | None) -> bool:
    """Returns whether a file holds rows, as a source of data does, rather than one prompt per line: by its suffix, as a
    folder, or, where there is no such file, as a split of another (`FILE::test`) or a source that is made (`gym:…`)."""
    from luthier.data.files import READERS, suffix
    from luthier.data.sources import MADE

    if file is None:
        return False
    rows = suffix(file) in READERS and suffix(file) not in LINES
    return rows or file.is_dir() or (not file.exists() and ("::" in str(file) or str(file).startswith(MADE)))


def tools_of(file: Path | None) -> list[dict[str, Any]] | None:
    """Returns the tools in a .json file; raises unless it is a list of objects."""
    if file is None:
        return None
    from luthier.core.records import read_json

    found = read_json(path_of(file))
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise LuthierError(f"{file} holds no tools; expected a list of JSON schemas, one for each function.")
    return found


def variables_of(given: str | None, adapter: str | None) -> dict[str, Any]:
    """Variables of the chat template: those that an adapter's rows shared, under those `given` as a JSON object."""
    from luthier.core.json_text import loads
    from luthier.core.storage.folder import read_adapter
    from luthier.models import Chat

    chat = Chat.of(read_adapter(adapter)[1]) if adapter is not None else None
    with guarded("--chat-template-kwargs is not JSON"):
        told = loads(given) if given is not None else {}
    if not isinstance(told, dict):
        raise LuthierError('--chat-template-kwargs: expected a JSON object, such as {"enable_thinking": false}.')
    return {**(chat.variables if chat else {}), **told}


def plain(prompt: str | Example) -> Any:
    """Returns a prompt as JSON holds it: a text, turns, or where the sound is."""
    return prompt if isinstance(prompt, str) else prompt.text or prompt.messages or _sound(prompt)


def asked(prompt: str | Example) -> str:
    """Returns a prompt on the screen: the text, or the last turn."""
    if isinstance(prompt, str):
        return prompt
    return prompt.text or (prompt.messages or [{}])[-1].get("content") or _sound(prompt)


def _sound(prompt: Example) -> str:
    """The file of a row's sound, or the row, where the sound itself is in it."""
    held = prompt.audio.get("path") if isinstance(prompt.audio, dict) else prompt.audio
    return held if isinstance(held, str) else f"row {prompt.row}"


def read_prompts(prompts: Sequence[str], file: Path | None, command: str) -> list[str]:
    """Returns the prompts from wherever they stand; empty lines of a file are none."""
    if prompts and file:
        raise LuthierError("prompts stand on the command line and in --file; give one of the two.")
    if prompts:
        return list(prompts)
    if file is not None:
        with guarded(f"cannot read {file}"):
            text = path_of(file).read_text(encoding="utf-8")
        found = [line for line in text.splitlines() if line.strip()]
    else:
        text = "" if sys.stdin.isatty() else sys.stdin.read().strip()
        found = [text] if text else []
    if not found:
        raise LuthierError(f'no prompt; give one, as in `luthier {command} MODEL "Hello"`, or --file.')
    return found
