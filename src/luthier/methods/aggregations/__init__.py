"""Aggregations: what clients learnt apart becomes one change. One file, one rule."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "aggregated how?"
__path__ += plugin_folders("aggregations")
__getattr__ = attributes("aggregations")
