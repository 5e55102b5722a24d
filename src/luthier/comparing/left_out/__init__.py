"""Meta-tuning: trained on the questions of some groups of data sets, tested on those of a group that was left out."""

from __future__ import annotations

from luthier.comparing.left_out.run import LeftOut, leave_out
from luthier.comparing.left_out.sets import QuestionSet, read_sets

__all__ = ["LeftOut", "QuestionSet", "leave_out", "read_sets"]
