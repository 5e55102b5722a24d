"""Running work in a thread of its own, which leaves no threads of OpenMP behind."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_in_thread(make: Callable[[], T]) -> T:
    """Runs `make` in a thread that ends, and returns or raises what it does.

    Every thread that runs torch on a CPU gets OpenMP workers of its own, and keeps them as long as it lives. Once there
    are more of them than cores, GNU's OpenMP sends workers to sleep between any two products, and wakes them for each:
    the engine's decode a fifth to a third more slowly while the main thread, idle, has workers from loading the model.
    """
    made: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # the caller's
            made.set_exception(error)

    thread = threading.Thread(target=context.run, args=(run,), name="luthier-apart", daemon=True)
    thread.start()
    try:
        return made.result()
    finally:
        if made.done():
            thread.join()
