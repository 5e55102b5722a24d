"""Many adapters trained at once over one frozen base.

Heavy libraries load inside the functions, so importing this costs nothing.
"""

from __future__ import annotations

from luthier.training.together.plan import train_at_once, train_plan
from luthier.training.together.pool import Pool
from luthier.training.together.work import Batched, Outcome, Row, Work

__all__ = ["Batched", "Outcome", "Pool", "Row", "Work", "train_at_once", "train_plan"]
