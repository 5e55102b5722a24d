"""Training: a run from its specification to a saved adapter.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.training.result import Result
from luthier.training.run import train
from luthier.training.spec import Run, Training

__all__ = ["Result", "Run", "Training", "train"]
