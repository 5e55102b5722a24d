"""Unlearnings: how rows are forgotten, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "how are rows forgotten?"
__path__ += plugin_folders("unlearnings")
__getattr__ = attributes("unlearnings")
