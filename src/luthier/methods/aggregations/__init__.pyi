"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.aggregations.fedit import FedIT as FedIT
from luthier.methods.aggregations.flexlora import FlexLoRA as FlexLoRA
from luthier.methods.aggregations.flora import FLoRA as FLoRA
from luthier.methods.aggregations.zero_padding import ZeroPadding as ZeroPadding

AXIS: str
