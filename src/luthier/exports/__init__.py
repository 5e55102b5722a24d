"""Exports: an adapter leaves for other software. One file, one format."""

from luthier.core.component import attributes, plugin_folders

AXIS = "leaves in which format?"
__path__ += plugin_folders("exports")
__getattr__ = attributes("exports")
