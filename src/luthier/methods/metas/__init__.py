"""Meta-learners: what is trained so that few demonstrations are enough, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "which meta-learner?"
__path__ += plugin_folders("metas")
__getattr__ = attributes("metas")
