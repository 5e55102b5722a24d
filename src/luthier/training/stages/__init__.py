"""Stages: several runs in one file, each of which goes on with the adapter of the one before."""

from __future__ import annotations

from luthier.training.stages.plan import Measured, Stage, StagePlan, read_plan
from luthier.training.stages.work import Staged, run_plan

__all__ = ["Measured", "Stage", "StagePlan", "Staged", "read_plan", "run_plan"]
