"""Measuring: what the data look like inside the model, and the ranks that follow."""

from luthier.measuring.allocation import Allocation, allocate
from luthier.measuring.calibration import Calibration, calibrate

__all__ = ["Allocation", "Calibration", "allocate", "calibrate"]
