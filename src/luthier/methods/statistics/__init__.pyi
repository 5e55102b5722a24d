"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.statistics.gradient import Gradient as Gradient
from luthier.methods.statistics.moment import Moment as Moment
from luthier.methods.statistics.pca import PCA as PCA
from luthier.methods.statistics.states import States as States

AXIS: str
