"""The task that a model or an adapter was trained for, so that it need not be given again."""

from __future__ import annotations

import shlex
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.speech import SPEECH

WRITTEN = ("causal-lm", "seq2seq")
"""Tasks whose answers are text."""


def fitted_task(spec: dict[str, Any]) -> str:
    """Returns the task that an adapter was fitted for: what its run says, else the one that its base's class serves."""
    from luthier.models.load import task_of_class

    return str(spec["measured"].get("task") or task_of_class(spec["base"]["model"]))


def task_of(model: str, adapter: str | None) -> str | None:
    """The task that needs not be said twice: the adapter's, or that of a model which can do no other with prompts, or
    writes down what it hears."""
    from luthier.core.storage.folder import read_adapter
    from luthier.models.config import config_of
    from luthier.models.load import task_of_class

    if adapter is not None:
        return fitted_task(read_adapter(adapter)[1])
    config = config_of(model)
    if not config.is_encoder_decoder:
        return None
    return SPEECH if task_of_class((config.architectures or [""])[0]) == SPEECH else "seq2seq"


def refuse_unwritten(model: str, adapter: str | None, task: str | None, *, tasks: tuple[str, ...] = WRITTEN) -> None:
    """Raises where what a model was fitted for has no text to write token by token, with the command that does it."""
    if task is None or task in tasks:
        return
    who = f"{adapter or model} was fitted for {task}"
    said = shlex.join([model, *(["--adapter", adapter] if adapter else [])])
    if task == "embedding":
        raise LuthierError(f"{who}, which has no text to write.")
    if task == SPEECH:
        raise LuthierError(f"{who}, which writes down sounds: luthier generate {said} SOUND.wav")
    if task == "seq2seq":
        raise LuthierError(f"{who}, an encoder-decoder that answers by itself: luthier generate {said} PROMPT")
    raise LuthierError(
        f"{who}, whose answers are no text. To have rows answered: luthier evaluate {said} DATA --out FILE"
    )
