"""Objectives: a loss on a batch."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "towards what?"
__path__ += plugin_folders("objectives")
__getattr__ = attributes("objectives")
