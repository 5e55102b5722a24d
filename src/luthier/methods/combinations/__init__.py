"""Combinations: several changes of one base become one. One file, one rule."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "combined how?"
__path__ += plugin_folders("combinations")
__getattr__ = attributes("combinations")
