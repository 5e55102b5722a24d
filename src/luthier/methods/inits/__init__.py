"""Initialisations of a form's factors, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which initialisation?"
__path__ += plugin_folders("inits")
__getattr__ = attributes("inits")
