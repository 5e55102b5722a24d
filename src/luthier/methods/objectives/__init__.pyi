"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.objectives.amft import AMFT as AMFT
from luthier.methods.objectives.class_weights import ClassWeights as ClassWeights
from luthier.methods.objectives.cpo import CPO as CPO
from luthier.methods.objectives.distill import Distill as Distill
from luthier.methods.objectives.dpo import DPO as DPO
from luthier.methods.objectives.dual_tune import DualTune as DualTune
from luthier.methods.objectives.grpo import GRPO as GRPO
from luthier.methods.objectives.info_nce import InfoNCE as InfoNCE
from luthier.methods.objectives.kto import KTO as KTO
from luthier.methods.objectives.label_smoothing import LabelSmoothing as LabelSmoothing
from luthier.methods.objectives.many_icl import ManyICL as ManyICL
from luthier.methods.objectives.masked_thought import MaskedThought as MaskedThought
from luthier.methods.objectives.mft import MFT as MFT
from luthier.methods.objectives.morepair import MORepair as MORepair
from luthier.methods.objectives.orpo import ORPO as ORPO
from luthier.methods.objectives.reward import Reward as Reward
from luthier.methods.objectives.rloo import RLOO as RLOO
from luthier.methods.objectives.routing import Routing as Routing
from luthier.methods.objectives.sft import SFT as SFT
from luthier.methods.objectives.simpo import SimPO as SimPO
from luthier.methods.objectives.two_passes import TwoPasses as TwoPasses

AXIS: str
