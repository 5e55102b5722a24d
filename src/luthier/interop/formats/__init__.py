"""Formats of other software: adapters come in from one, or leave as one. One file, one format."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "in which format of other software does it come or leave?"
__path__ += plugin_folders("formats")
__getattr__ = attributes("formats")
