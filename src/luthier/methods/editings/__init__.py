"""Editings: how facts are written into a model, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "how are facts written?"
__path__ += plugin_folders("editings")
__getattr__ = attributes("editings")
