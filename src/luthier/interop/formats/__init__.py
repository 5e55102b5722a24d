"""Exports: an adapter leaves for other software. One file, one format."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "leaves in which format?"
__path__ += plugin_folders("formats")
__getattr__ = attributes("formats")
