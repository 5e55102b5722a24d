"""Silencing the warnings of transformers: Luthier reports new modules of a model itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.core.first_import import quiet_imports


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Holds transformers to errors inside the block; `bars` keeps its bars where there is a terminal."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not (bars and sys.stderr.isatty()):
        logging.disable_progress_bar()
    try:
        with quiet_imports():
            yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
