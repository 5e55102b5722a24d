"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.ranks.eva import EVA as EVA
from luthier.methods.ranks.gelora import GeLoRA as GeLoRA
from luthier.methods.ranks.uniform import Uniform as Uniform

AXIS: str
