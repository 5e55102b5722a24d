"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.metas.abmll import ABMLL as ABMLL
from luthier.methods.metas.chameleon import Chameleon as Chameleon
from luthier.methods.metas.fomaml import FOMAML as FOMAML

AXIS: str
