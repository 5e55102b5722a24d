"""Editing: facts are written into one tensor of a model, as a small adapter."""

from __future__ import annotations

from luthier.training.editing.run import Edited, edit
from luthier.training.editing.spec import Edit

__all__ = ["Edit", "Edited", "edit"]
