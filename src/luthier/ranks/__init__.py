"""Ranks: how many directions each site gets. A file is one allocation."""

from luthier.core.component import plugin_folders

AXIS = "how much?"
__path__ += plugin_folders("ranks")
