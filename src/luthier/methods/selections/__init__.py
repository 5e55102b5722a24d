"""Selections: which rows a model is fitted to. One file, one rule."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "on what?"
__path__ += plugin_folders("selections")
__getattr__ = attributes("selections")
