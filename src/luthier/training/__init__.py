"""Training: a run from its specification to a saved adapter, and what the fitted model does.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.training.evaluation import Evaluation, evaluate
from luthier.training.generation import generate
from luthier.training.result import Result
from luthier.training.run import train
from luthier.training.spec import Run, Training

__all__ = ["Evaluation", "Result", "Run", "Training", "evaluate", "generate", "train"]
