"""How many tokens a model can number."""

from __future__ import annotations

import re
from typing import Any

_TABLE = re.compile(r"(^|\.)(wpe|[a-z_]*position[a-z_]*)$")
_OFFSET = 8
"""Rows that a table may have more than positions (OPT and BART have 2)."""


def positions(model: Any) -> int | None:
    """Returns the most tokens of a row, where a table holds a vector for each absolute position; else None.

    Relative and rotary positions set no hard bound. Shapes alone will do, without weights.
    """
    from torch import nn

    config = getattr(model, "config", None)
    most = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    found = [
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)  # RoBERTa counts from there
        for path, table in model.named_modules()
        if isinstance(table, nn.Embedding) and _TABLE.search(path) and 0 <= table.num_embeddings - most <= _OFFSET
    ]
    return min([most, *found]) if found else None
