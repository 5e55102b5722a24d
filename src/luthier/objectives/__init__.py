"""Objectives: a loss on a batch."""

from luthier.core.component import plugin_folders

AXIS = "towards what?"
__path__ += plugin_folders("objectives")
