"""Decodings: the logits of several models become one choice of the next token. One file, one rule."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "decoded how?"
__path__ += plugin_folders("decodings")
__getattr__ = attributes("decodings")
