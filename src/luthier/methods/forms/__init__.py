"""Forms: what is added to a site. One file, one equation."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "what form?"
__path__ += plugin_folders("forms")
__getattr__ = attributes("forms")
