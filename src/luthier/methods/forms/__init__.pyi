"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.methods.forms.bitfit import BitFit as BitFit
from luthier.methods.forms.bottleneck import Bottleneck as Bottleneck
from luthier.methods.forms.conformer import Conformer as Conformer
from luthier.methods.forms.consreft import ConsReFT as ConsReFT
from luthier.methods.forms.direft import DiReFT as DiReFT
from luthier.methods.forms.dora import DoRA as DoRA
from luthier.methods.forms.dsee import DSEE as DSEE
from luthier.methods.forms.full import Full as Full
from luthier.methods.forms.gift import GIFT as GIFT
from luthier.methods.forms.hydra import Hydra as Hydra
from luthier.methods.forms.ia3 import IA3 as IA3
from luthier.methods.forms.iaa import IAA as IAA
from luthier.methods.forms.l2m import L2M as L2M
from luthier.methods.forms.levi import LEVI as LEVI
from luthier.methods.forms.lobireft import LobiReFT as LobiReFT
from luthier.methods.forms.loldu import LoLDU as LoLDU
from luthier.methods.forms.lora import LoRA as LoRA
from luthier.methods.forms.loramoe import LoRAMoE as LoRAMoE
from luthier.methods.forms.loraxs import LoRAXS as LoRAXS
from luthier.methods.forms.loreft import LoReFT as LoReFT
from luthier.methods.forms.meteora import MeteoRA as MeteoRA
from luthier.methods.forms.mhr import MHR as MHR
from luthier.methods.forms.mixlora import MixLoRA as MixLoRA
from luthier.methods.forms.mosa import MoSA as MoSA
from luthier.methods.forms.noreft import NoReFT as NoReFT
from luthier.methods.forms.polyhistor import Polyhistor as Polyhistor
from luthier.methods.forms.prefix import Prefix as Prefix
from luthier.methods.forms.red import RED as RED
from luthier.methods.forms.s2ft import S2FT as S2FT
from luthier.methods.forms.sparse import Sparse as Sparse
from luthier.methods.forms.wegeft import WeGeFT as WeGeFT

AXIS: str
