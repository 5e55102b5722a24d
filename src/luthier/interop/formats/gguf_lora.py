"""GGUF: the change alone, for llama.cpp's --lora."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features
from luthier.interop.formats._low_rank import LowRankFormat


@dataclass(frozen=True)
class GGUFLoRA(LowRankFormat):
    """ΔW = (alpha / r) B A ↔ adapter.gguf, for a GGUF of the same base

    What llama.cpp loads beside a base (`--lora`), several at a time and each at a strength of its own. Written are
    factors of linear layers and of tables in float32, under the same rules as for peft; a table that is the head too,
    biases and new modules are refused.

    Read are files of any dtype, as llama.cpp runs them at strength 1, tables of untied bases included. An alpha of 0,
    or none, means a factor of 1 there, and so here. Weights of norms, which llama.cpp passes over, are told; those that
    act from certain tokens on alone (aLoRA) are refused.
    """

    paper = "llama.cpp (ggml-org), gguf-py 0.19"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._gguf.reading import beside

        return beside(folder, "lora") is not None

    def base(self, folder: Path) -> str | None:
        from luthier.interop.formats._gguf.reading import needed

        told = needed(folder, "lora").values.get("general.base_model.0.repo_url")
        return told.removeprefix("https://huggingface.co/") if isinstance(told, str) and told else None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "llama.cpp"} | ({"base": told} if (told := self.base(folder)) else {})

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._factors import lora_of
        from luthier.interop.formats._gguf.architectures import architecture_of
        from luthier.interop.formats._gguf.lora import pairs_of
        from luthier.interop.formats._gguf.reading import needed

        return lora_of(folder, pairs_of(needed(folder, "lora"), model, architecture_of(model)), model)

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._gguf.architectures import architecture_of
        from luthier.interop.formats._gguf.file import library

        library()
        architecture_of(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._gguf import file
        from luthier.interop.formats._gguf.architectures import architecture_of
        from luthier.interop.formats._layers import changed_weights

        model: Any = outgoing.model
        architecture, factoring = architecture_of(model), self.factoring()
        names = file.Names(architecture, model.config.num_hidden_layers)
        layers = changed_weights(model, outgoing.name)
        for layer in layers:
            table = isinstance(layer.module, nn.Embedding)
            tied = model.config.tie_word_embeddings and (table or layer.path == "lm_head")
            if tied or not (table or features(layer.module)):
                raise LuthierError(
                    f"{layer.path} is not a linear layer or table of its own to llama.cpp; export a whole GGUF."
                )
        pairs = {layer.path: factoring(layer) for layer in layers}
        common = Counter(len(a) for _, a in pairs.values()).most_common(1)[0][0]
        with file.writing(folder / "adapter.gguf", architecture) as writer:
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", float(common))
            for path, (b, a) in pairs.items():
                b = len(a) / common * architecture.tensor(f"{path}.weight", b, model.config)  # it scales by alpha / r
                looked_up = isinstance(model.get_submodule(path), nn.Embedding)  # its A is [rows, r] there
                file.add(writer, f"{names(f'{path}.weight')}.lora_a", a.mT if looked_up else a, "f32")
                file.add(writer, f"{names(f'{path}.weight')}.lora_b", b, "f32")
        return factoring.lost
