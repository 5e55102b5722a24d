"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.combinations.breadcrumbs import Breadcrumbs as Breadcrumbs
from luthier.methods.combinations.composable import Composable as Composable
from luthier.methods.combinations.dare import DARE as DARE
from luthier.methods.combinations.lines import LiNeS as LiNeS
from luthier.methods.combinations.mitigate_intruders import MitigateIntruders as MitigateIntruders
from luthier.methods.combinations.portllm import PortLLM as PortLLM
from luthier.methods.combinations.task_arithmetic import TaskArithmetic as TaskArithmetic
from luthier.methods.combinations.ties import TIES as TIES
from luthier.methods.combinations.transfer import Transfer as Transfer

AXIS: str
