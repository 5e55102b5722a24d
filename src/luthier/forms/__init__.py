"""Forms: what is added to a site. One file, one equation."""

from luthier.core.component import plugin_folders

AXIS = "what form?"
__path__ += plugin_folders("forms")
