"""Updates: how a form is trained. A file is a transform of gradients, or of what is active."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "how trained?"
__path__ += plugin_folders("updates")
__getattr__ = attributes("updates")
