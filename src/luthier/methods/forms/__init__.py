"""Forms (adapter methods): what is added to each site, one equation per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which form?"
__path__ += plugin_folders("forms")
__getattr__ = attributes("forms")
