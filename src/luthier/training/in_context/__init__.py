"""Learning in context: a sequence model from scratch, meta-trained over random tasks until it learns new ones."""

from __future__ import annotations

from luthier.training.in_context.run import InContextLearned, learn_in_context
from luthier.training.in_context.spec import InContext

__all__ = ["InContext", "InContextLearned", "learn_in_context"]
