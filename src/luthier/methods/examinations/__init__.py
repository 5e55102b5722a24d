"""Examinations: measurements of what fine-tuning did, beside those of a null, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "examined how?"
__path__ += plugin_folders("examinations")
__getattr__ = attributes("examinations")
