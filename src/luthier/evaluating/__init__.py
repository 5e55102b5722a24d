"""Evaluating: what a fitted model answers, and the scores of its answers.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.evaluating.evaluate import Evaluation, evaluate
from luthier.evaluating.generate import generate

__all__ = ["Evaluation", "evaluate", "generate"]
