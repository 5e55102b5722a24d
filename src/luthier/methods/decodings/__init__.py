"""Decodings: rules that combine the logits of several models into the next token, one per file."""

from luthier.core.contracts.component import attributes
from luthier.core.contracts.plugins import plugin_folders

AXIS = "decoded how?"
__path__ += plugin_folders("decodings")
__getattr__ = attributes("decodings")
