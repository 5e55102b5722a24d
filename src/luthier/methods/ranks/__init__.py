"""Ranks: how many directions each site gets. A file is one allocation."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "how much?"
__path__ += plugin_folders("ranks")
__getattr__ = attributes("ranks")
