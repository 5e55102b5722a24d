"""Self-training: a teacher from few labelled rows labels others, and a student learns those that help."""

from __future__ import annotations

from luthier.training.self_training.run import SelfTrained, self_train
from luthier.training.self_training.spec import SelfTraining

__all__ = ["SelfTrained", "SelfTraining", "self_train"]
