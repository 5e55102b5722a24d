"""The log of answers: one line of JSON for each complete answer, in a layout that training reads."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.guard import reason
from luthier.core.paths import path_of
from luthier.core.records import append_text
from luthier.serving.http.answers import Shape

COMPLETE = ("stop", "length")
"""Ends of an answer that was not broken off."""
OWNER_ALONE = 0o600
"""Who may read the file."""


def refuse_unwritable(file: Path) -> None:
    """Raises `LuthierError` unless a file can be appended to; it is made, readable by its owner alone."""
    try:
        os.close(_opened(file))
    except OSError as error:
        raise LuthierError(f"--log {file} cannot be written ({reason(error)}); give another file.") from None


def _opened(file: Path) -> int:
    return os.open(path_of(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ALONE)


class AnswerLog:
    """Appends answers to a file. While it cannot be written, which is told once, answers are not kept, and serving goes
    on."""

    def __init__(self, file: Path) -> None:
        self.file = path_of(file)
        self._lock = threading.Lock()
        self._failed = False

    def write(self, answers: Shape, prompts: Sequence[Any]) -> None:
        """Writes what was answered to each prompt; answers that were broken off are left out.

        A prompt is a list of turns, a text, or token ids (which are kept as they are). A line holds `time` (UTC),
        `model`, `finish`, `tokens`, and `messages` or `prompt` and `completion`.
        """
        each = max(1, len(answers.choices) // max(1, len(prompts)))
        lines = [
            json.dumps(self._line(answers, prompts[index // each], choice), ensure_ascii=False)
            for index, choice in enumerate(answers.choices)
            if choice.finish in COMPLETE
        ]
        if lines:
            self._append("".join(line + "\n" for line in lines))

    def _line(self, answers: Shape, prompt: Any, choice: Any) -> dict[str, Any]:
        head = {
            "time": datetime.fromtimestamp(answers.created, timezone.utc).isoformat(),
            "model": answers.model,
            "finish": choice.finish,
            "tokens": choice.generated,
        }
        turns = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
        if turns:
            return head | {"messages": [*prompt, choice.message()]}
        return head | {"prompt": prompt, "completion": choice.text}

    def _append(self, text: str) -> None:
        try:
            with self._lock:
                append_text(self.file, text, OWNER_ALONE)
            self._failed = False
        except OSError as error:
            if not self._failed:
                warnings.warn(f"answers are no longer logged: {self.file} ({reason(error)}).", stacklevel=2)
            self._failed = True
