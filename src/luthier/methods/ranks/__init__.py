"""Rank allocations: which rank each site gets, one rule per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which ranks?"
__path__ += plugin_folders("ranks")
__getattr__ = attributes("ranks")
