"""Sources: the libraries whose adapters can be imported, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "comes in from which library?"
__path__ += plugin_folders("sources")
__getattr__ = attributes("sources")
