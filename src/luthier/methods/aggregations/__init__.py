"""Aggregations: rules by which a federated server combines its clients' changes, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "aggregated how?"
__path__ += plugin_folders("aggregations")
__getattr__ = attributes("aggregations")
