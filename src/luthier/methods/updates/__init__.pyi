"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.updates.adamw import AdamW as AdamW
from luthier.methods.updates.freeze import Freeze as Freeze
from luthier.methods.updates.green_trainer import GreenTrainer as GreenTrainer
from luthier.methods.updates.hft import HFT as HFT
from luthier.methods.updates.layer_decay import LayerDecay as LayerDecay
from luthier.methods.updates.lift import LIFT as LIFT
from luthier.methods.updates.lisa import LISA as LISA
from luthier.methods.updates.lora_plus import LoRAPlus as LoRAPlus
from luthier.methods.updates.lora_pro import LoRAPro as LoRAPro
from luthier.methods.updates.lt_sft import LTSFT as LTSFT
from luthier.methods.updates.prune import Prune as Prune
from luthier.methods.updates.sara import SaRA as SaRA
from luthier.methods.updates.soft_mask import SoftMask as SoftMask
from luthier.methods.updates.spiel import SpIEL as SpIEL
from luthier.methods.updates.two_speed import TwoSpeed as TwoSpeed

AXIS: str
