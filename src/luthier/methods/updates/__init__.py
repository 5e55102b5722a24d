"""Updates of AdamW: transforms of gradients, or of which parameters are active, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which update?"
__path__ += plugin_folders("updates")
__getattr__ = attributes("updates")
