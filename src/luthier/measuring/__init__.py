"""Measuring: what the data look like inside the model, and the ranks that follow.

Names load on first use: the command line reads the settings of a calibration without its libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.measuring.allocation import Allocation, allocate
    from luthier.measuring.calibration import Calibration, calibrate

__all__ = ["Allocation", "Calibration", "allocate", "calibrate"]
_PLACES = {
    "Allocation": "allocation",
    "allocate": "allocation",
    "Calibration": "calibration",
    "calibrate": "calibration",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
