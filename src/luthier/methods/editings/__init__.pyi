"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.editings.depth_first import DepthFirst as DepthFirst
from luthier.methods.editings.locft_bf import LocFTBF as LocFTBF

AXIS: str
