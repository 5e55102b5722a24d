"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.unlearnings.ascent import Ascent as Ascent
from luthier.methods.unlearnings.dmm import DMM as DMM
from luthier.methods.unlearnings.kl import KL as KL
from luthier.methods.unlearnings.retrain import Retrain as Retrain

AXIS: str
