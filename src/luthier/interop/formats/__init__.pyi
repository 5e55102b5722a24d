"""What type checkers know of this package. Written by `python -m luthier.cli.stubs`; edit the source, not this file."""

from luthier.interop.formats.adapterhub import AdapterHub as AdapterHub
from luthier.interop.formats.control_vector import ControlVector as ControlVector
from luthier.interop.formats.diffusers import Diffusers as Diffusers
from luthier.interop.formats.gguf import GGUF as GGUF
from luthier.interop.formats.gguf_lora import GGUFLoRA as GGUFLoRA
from luthier.interop.formats.kohya import Kohya as Kohya
from luthier.interop.formats.litgpt import LitGPT as LitGPT
from luthier.interop.formats.merged import Merged as Merged
from luthier.interop.formats.mlx_lm import MLXLM as MLXLM
from luthier.interop.formats.ollama import Ollama as Ollama
from luthier.interop.formats.onnx import ONNX as ONNX
from luthier.interop.formats.peft import PEFT as PEFT
from luthier.interop.formats.pruned import Pruned as Pruned
from luthier.interop.formats.pyreft import PyReFT as PyReFT
from luthier.interop.formats.sentence_transformers import SentenceTransformers as SentenceTransformers
from luthier.interop.formats.torchtune import TorchTune as TorchTune

AXIS: str
