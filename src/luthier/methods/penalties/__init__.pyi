"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.penalties.ewc import EWC as EWC
from luthier.methods.penalties.l2_sp import L2SP as L2SP
from luthier.methods.penalties.rwalk import RWalk as RWalk
from luthier.methods.penalties.si import SI as SI

AXIS: str
