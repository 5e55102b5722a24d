"""Pictures are written blank in tests that do not look at them: drawing one takes as long as a tiny run."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

DRAW = Figure.savefig
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mP8/x8AAwMCAO+ip1sAAAAASUVORK5CYII=")


@contextmanager
def skipped() -> Iterator[None]:
    """Figures are made with all that is on them, and one pixel is written."""

    def write(figure: Figure, path: Any, **how: Any) -> None:
        Path(path).write_bytes(PIXEL)

    with mock.patch.object(Figure, "savefig", write):
        yield


@contextmanager
def drawn() -> Iterator[None]:
    """They are drawn after all."""
    with mock.patch.object(Figure, "savefig", DRAW):
        yield
