"""Ollama: the whole model in a GGUF file, and the Modelfile that says how it is talked to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.contracts.format import Format, Outgoing


@dataclass(frozen=True)
class Ollama(Format):
    """W + ΔW → model.gguf and Modelfile, for `ollama create NAME -f Modelfile`

    The file is that of `gguf`. Ollama guesses the chat template of a GGUF from a list of known ones, and takes the bare
    prompt where it finds none near; here it is told: what the tokenizer's template writes between turns is measured
    and written in Go's language, and the tokens that end an answer are its stops. A template that is more than fixed
    texts around the turns is refused, since Ollama would ask otherwise than was trained. Tools are not written.
    """

    paper = "Ollama (ollama/ollama), its Modelfile; llama.cpp (ggml-org), gguf-py 0.19"
    base_dtype: ClassVar[str] = "auto"
    loss: ClassVar[str] = "rounded"

    dtype: Literal["auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = "auto"
    """Dtype of the matrices (auto: the model's own; q8_0: 8 bits, a scale for 32 numbers; the others are llama.cpp's
    mixtures of 4 to 6 bits, made by its own quantiser, which the package xllamacpp has)."""

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats.gguf import GGUF

        GGUF(dtype=self.dtype).check_base(model, processor)
        self.modelfile(model, processor)

    def modelfile(self, model: Any, processor: Any) -> str:
        """Returns the text of the Modelfile."""
        from luthier.interop.formats._gguf.tokenizers import adds_bos
        from luthier.interop.formats._modelfile import modelfile

        return modelfile(processor, model.generation_config, adds_bos(processor))

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats.gguf import GGUF

        (folder / "Modelfile").write_text(self.modelfile(outgoing.model, outgoing.processor), encoding="utf-8")
        return GGUF(dtype=self.dtype).write(outgoing, folder)
