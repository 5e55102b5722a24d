"""Comparing: methods side by side on the same models, data, budget and seeds.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.comparing.record import Record, records
    from luthier.comparing.runner import Comparison, compare
    from luthier.comparing.study import DataSet, Study, read_study

_PLACES = {
    "Comparison": "runner",
    "compare": "runner",
    "Record": "record",
    "records": "record",
    "DataSet": "study",
    "Study": "study",
    "read_study": "study",
}
__all__ = ["Comparison", "DataSet", "Record", "Study", "compare", "read_study", "records"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
