"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.selections.adapt_inf import AdaptInf as AdaptInf
from luthier.methods.selections.bm25 import BM25 as BM25
from luthier.methods.selections.dealrec import DEALRec as DEALRec
from luthier.methods.selections.got_d import GOTD as GOTD
from luthier.methods.selections.mapo import MAPO as MAPO
from luthier.methods.selections.margin import Margin as Margin
from luthier.methods.selections.random import Random as Random

AXIS: str
