"""Commands: one file each, found by discovery here, in `LUTHIER_PATH` and in installed packages."""

from luthier.core.contracts.plugins import plugin_folders

__path__ += plugin_folders("commands")
