"""Measuring: what the data look like inside the model, and the ranks that follow."""

from luthier.measuring.allocation import Allocation, allocate
from luthier.measuring.calibration import Calibration, calibrate
from luthier.measuring.measure import Report, measure

__all__ = ["Allocation", "Calibration", "Report", "allocate", "calibrate", "measure"]
