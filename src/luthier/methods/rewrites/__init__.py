"""Rewrites: rows made from rows, one rule per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which rows are made of rows?"
__path__ += plugin_folders("rewrites")
__getattr__ = attributes("rewrites")
