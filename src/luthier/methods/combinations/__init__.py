"""Combinations: rules that merge several changes of one base, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "combined how?"
__path__ += plugin_folders("combinations")
__getattr__ = attributes("combinations")
