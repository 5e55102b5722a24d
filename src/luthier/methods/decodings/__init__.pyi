"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.decodings.contrastive import Contrastive as Contrastive
from luthier.methods.decodings.emulated import Emulated as Emulated
from luthier.methods.decodings.proxy import Proxy as Proxy

AXIS: str
