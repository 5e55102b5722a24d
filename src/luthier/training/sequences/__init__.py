"""Sequences of tasks: one model that is fitted to several sets of rows, one after another."""

from __future__ import annotations

from luthier.training.sequences.run import Continued, carry_out
from luthier.training.sequences.spec import TaskSequence

__all__ = ["Continued", "TaskSequence", "carry_out"]
