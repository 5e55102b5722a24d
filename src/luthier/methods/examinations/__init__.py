"""Examinations: what fitting did to a model, beside what a null would show. One file, one measurement."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "examined how?"
__path__ += plugin_folders("examinations")
__getattr__ = attributes("examinations")
