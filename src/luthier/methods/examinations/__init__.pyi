"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.examinations.circuit import Circuit as Circuit
from luthier.methods.examinations.conjugate import Conjugate as Conjugate
from luthier.methods.examinations.finetunebench import FineTuneBench as FineTuneBench
from luthier.methods.examinations.forgetting import Forgetting as Forgetting
from luthier.methods.examinations.grafting import Grafting as Grafting
from luthier.methods.examinations.intruders import Intruders as Intruders
from luthier.methods.examinations.retrieval_grid import RetrievalGrid as RetrievalGrid
from luthier.methods.examinations.revival import Revival as Revival
from luthier.methods.examinations.routing import Routing as Routing
from luthier.methods.examinations.similarity import Similarity as Similarity

AXIS: str
