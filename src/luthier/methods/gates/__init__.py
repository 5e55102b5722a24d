"""Gates: what a fine-tuned model has to keep before it is released. One file, one check."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "what must a fine-tuned model keep?"
__path__ += plugin_folders("gates")
__getattr__ = attributes("gates")
