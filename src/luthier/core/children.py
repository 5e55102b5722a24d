"""Processes that work for this one: they end with it, however it ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK = 0.5
"""Seconds between two looks at whether the parent lives."""


def begin(parent: int) -> None:
    """Makes a forked process, as the first that it does, end with its parent.

    Ctrl-C, which a terminal sends to all, is its parent's to tell; a parent that was killed is noticed, since its
    children would wait for work for ever, and keep its locks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
