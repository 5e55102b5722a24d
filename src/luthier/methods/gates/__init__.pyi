"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.gates.calibration_drift import CalibrationDrift as CalibrationDrift
from luthier.methods.gates.context_use import ContextUse as ContextUse
from luthier.methods.gates.held_loss import HeldLoss as HeldLoss
from luthier.methods.gates.intruder_dimensions import IntruderDimensions as IntruderDimensions
from luthier.methods.gates.latency import Latency as Latency
from luthier.methods.gates.memory_growth import MemoryGrowth as MemoryGrowth
from luthier.methods.gates.refusals import Refusals as Refusals
from luthier.methods.gates.task_score import TaskScore as TaskScore

AXIS: str
