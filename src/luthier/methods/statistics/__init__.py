"""Statistics: what a calibration pass can measure at a site, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which statistics?"
__path__ += plugin_folders("statistics")
__getattr__ = attributes("statistics")
