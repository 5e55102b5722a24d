"""Evaluating: what a fitted model answers, and the scores of its answers.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.evaluating.evaluate import evaluate
from luthier.evaluating.generate import generate
from luthier.evaluating.predict import Predicted, predict
from luthier.evaluating.result import Evaluation

__all__ = ["Evaluation", "Predicted", "evaluate", "generate", "predict"]
