"""Statistics: what the calibration pass can learn of a place. A file is one statistic."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "known from what?"
__path__ += plugin_folders("statistics")
__getattr__ = attributes("statistics")
