"""Selections: which rows a model is trained on, one rule per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which rows?"
__path__ += plugin_folders("selections")
__getattr__ = attributes("selections")
