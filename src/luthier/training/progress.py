"""Progress: a bar with loss and time left on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback
from transformers.utils import logging

from luthier.core.progress import counted

EVERY = 10.0
"""Seconds between lines where there is no terminal."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and warnings; errors are still shown."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def shown(console: Console, total: int) -> Iterator[list[TrainerCallback]]:
    """Returns the callbacks that show the progress of `total` steps."""
    if not console.is_terminal:
        yield [Lines(console, total)]
        return
    with counted(console, "training", stays=True) as bar:
        yield [Bar(bar, total)]


def figures(logs: dict[str, float], before: str = "") -> str:
    """Returns `loss 1.234  eval 1.5`; an evaluation keeps the loss shown before it. Rewards stand beside losses."""
    loss = f"loss {logs['loss']:.4f}" if "loss" in logs else before.partition("  eval")[0]
    loss += f"  reward {logs['reward']:.4f}" if "loss" in logs and "reward" in logs else ""
    held = f"  eval {logs['eval_loss']:.4f}" if "eval_loss" in logs else ""
    held += f"  eval reward {logs['eval_reward']:.4f}" if "eval_reward" in logs else ""
    kept = before[before.index("  eval") :] if "  eval" in before and not held else ""
    return loss + (held or kept)


class Bar(TrainerCallback):
    """A rich bar."""

    def __init__(self, bar: Progress, total: int) -> None:
        self.bar, self.text = bar, ""
        self.task = bar.add_task("", total=total)

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts where a resumed run stands."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Moves the bar."""
        self.text = figures(logs or {}, self.text)
        self.bar.update(self.task, completed=state.global_step, description=self.text)


class Lines(TrainerCallback):
    """A line every `EVERY` seconds, and one at the end."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.text = console, total, ""

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self.begun, self.first, self.last = time.monotonic(), state.global_step, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Prints if it is time."""
        self.text = figures(logs or {}, self.text)
        now, step = time.monotonic(), state.global_step
        if (now - self.last < EVERY and step < self.total) or "loss" not in (logs or {}):
            return
        self.last = now
        left = (now - self.begun) / max(step - self.first, 1) * (self.total - step)
        text = f"step {step}/{self.total}  {self.text}  {clock(left)} left"
        self.console.print(text, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Formats a time: `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
