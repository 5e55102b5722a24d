"""Initialisers: where a form starts. A file is one choice of starting factors."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "from what?"
__path__ += plugin_folders("inits")
__getattr__ = attributes("inits")
