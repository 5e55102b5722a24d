"""Comparing: methods side by side on the same models, data, budget and seeds.

Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.comparing.record import Record, records

__all__ = ["Record", "records"]
_PLACES = {"Record": "record", "records": "record"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
