"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.objectives.many_icl import ManyICL as ManyICL
from luthier.methods.objectives.masked_thought import MaskedThought as MaskedThought
from luthier.methods.objectives.mft import MFT as MFT
from luthier.methods.objectives.morepair import MORepair as MORepair
from luthier.methods.objectives.routing import Routing as Routing
from luthier.methods.objectives.sft import SFT as SFT

AXIS: str
