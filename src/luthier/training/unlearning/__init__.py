"""Unlearning: an adapter as if some of its rows had never been learned."""

from __future__ import annotations

from luthier.training.unlearning.run import Unlearned, unlearn
from luthier.training.unlearning.spec import Unlearn

__all__ = ["Unlearn", "Unlearned", "unlearn"]
