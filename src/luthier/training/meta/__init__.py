"""Meta-learning: an adapter that adapts from one or two demonstrations."""

from __future__ import annotations

from luthier.training.meta.learned import MetaLearned
from luthier.training.meta.run import meta_learn
from luthier.training.meta.spec import MetaRun

__all__ = ["MetaLearned", "MetaRun", "meta_learn"]
