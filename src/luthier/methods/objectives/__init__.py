"""Objectives: training losses, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which loss?"
__path__ += plugin_folders("objectives")
__getattr__ = attributes("objectives")
