"""A folder that transformers reads already."""

from __future__ import annotations

import shutil
from pathlib import Path


def convert(weights: Path, target: Path) -> None:
    """Copies the folder that the weights file lies in."""
    shutil.copytree(weights.parent, target)
