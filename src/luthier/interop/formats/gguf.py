"""GGUF: the whole model in one file, for llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.contracts.format import Format, Outgoing
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class GGUF(Format):
    """W + ΔW → model.gguf, with tokenizer and chat template

    The merged model as llama.cpp, Ollama and LM Studio read it: Llama, Mistral, Qwen2, Qwen3 and Gemma 3 with a
    byte-level or SentencePiece-like BPE. Matrices are stored in `dtype`, vectors in float32. What llama.cpp has no word
    for (a sliding window, another scaling of positions, another split of text) is refused, as it would answer
    nonsense without a warning.
    """

    paper = "llama.cpp (ggml-org), gguf-py 0.19"
    base_dtype: ClassVar[str] = "auto"
    loss: ClassVar[str] = "rounded"

    dtype: Literal["auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = "auto"
    """Dtype of the matrices (auto: the model's own; q8_0: 8 bits, a scale for 32 numbers; the others are llama.cpp's
    mixtures of 4 to 6 bits, made by its own quantiser, which the package xllamacpp has)."""

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._gguf import k_quants
        from luthier.interop.formats._gguf.architectures import architecture_of
        from luthier.interop.formats._gguf.file import library
        from luthier.interop.formats._gguf.tokenizers import core_of, kind_of

        library()
        if self.dtype in k_quants.MIXTURES:
            k_quants.check()
        architecture_of(model)
        if processor is None:
            raise LuthierError("a GGUF file holds the tokenizer; pass processor=….")
        kind_of(core_of(processor))

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._gguf import file
        from luthier.interop.formats._gguf.architectures import architecture_of, rope_factors
        from luthier.interop.formats._gguf.tokenizers import describe
        from luthier.interop.formats._merged import merged

        model: Any = outgoing.model
        architecture = architecture_of(model)
        dtype = file.own_dtype(model) if self.dtype == "auto" else self.dtype
        with file.writing(folder / "model.gguf", architecture) as writer, merged(model, outgoing.name) as tensors:
            writer.add_type("model")
            writer.add_name(Path(getattr(model, "name_or_path", "") or type(model).__name__).name)
            architecture.metadata(writer, model.config)
            file.file_type(writer, dtype)
            describe(writer, outgoing.processor, model.get_input_embeddings().num_embeddings)
            if (factors := rope_factors(model)) is not None:
                file.add(writer, "rope_freqs.weight", factors, "f32")
            return file.add_model(writer, architecture, model, tensors, dtype)
