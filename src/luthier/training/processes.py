"""How many processes train together, and which of them writes files."""

from __future__ import annotations

import os


def processes() -> int:
    """Processes that train together, as torchrun tells."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Returns whether this process writes files: all others only compute. One alone does, whatever RANK is to it."""
    return processes() == 1 or int(os.environ.get("RANK", "0")) == 0
