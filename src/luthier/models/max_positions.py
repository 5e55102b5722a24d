"""How many tokens a model can number."""

from __future__ import annotations

import re
from typing import Any

_TABLE = re.compile(r"(^|\.)(wpe|[a-z_]*position[a-z_]*)$")
_BOUNDS = ("max_position_embeddings", "max_target_positions")
"""What configurations call the most positions; the latter, of a decoder beside an encoder of sounds."""
_OFFSET = 8
"""Rows that a table may have more than positions (OPT and BART have 2)."""


def positions(model: Any) -> int | None:
    """Returns the most tokens of a row, where a table holds a vector for each absolute position; else None.

    Relative and rotary positions set no hard bound. Shapes alone will do, without weights.
    """
    from torch import nn

    config = getattr(model, "config", None)
    told = None if config is None else config.get_text_config()
    most = next((n for name in _BOUNDS if (n := getattr(told, name, None)) is not None), None)
    if not isinstance(most, int):
        return None
    found = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)  # RoBERTa counts from there
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding) and _TABLE.search(path) and 0 <= table.num_embeddings - most <= _OFFSET
    ]
    return min([most, *found]) if found else None
