"""Imports: another library's adapter becomes one of ours. One file, one library."""

from luthier.core.component import attributes, plugin_folders

AXIS = "comes in from which library?"
__path__ += plugin_folders("imports")
__getattr__ = attributes("imports")
