"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.interop.sources.peft import PEFT as PEFT
from luthier.interop.sources.pyreft import PyReFT as PyReFT

AXIS: str
