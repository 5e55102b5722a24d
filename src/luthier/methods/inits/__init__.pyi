"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.inits.corda import CorDA as CorDA
from luthier.methods.inits.eva import EVA as EVA
from luthier.methods.inits.lora_ga import LoRAGA as LoRAGA
from luthier.methods.inits.lora_sb import LoRASB as LoRASB
from luthier.methods.inits.olora import OLoRA as OLoRA
from luthier.methods.inits.pissa import PiSSA as PiSSA

AXIS: str
