"""Penalties: what a change is charged for, so that what was learned before stays. One per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which penalty?"
__path__ += plugin_folders("penalties")
__getattr__ = attributes("penalties")
