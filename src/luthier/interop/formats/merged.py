"""The whole model, with the adapter folded in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from luthier.core.contracts.format import Format, Outgoing


@dataclass(frozen=True)
class Merged(Format):
    """W + ΔW → model.safetensors, config.json, generation_config.json, tokenizer

    What `luthier merge` writes: a folder that transformers, vLLM and every converter read as they read the base, in
    the base's own dtype. Every affine form is exact up to that dtype's rounding. The model is loaded again and
    compared with the adapted one on a small input.
    """

    paper = "transformers (Hugging Face), `save_pretrained`"
    base_dtype: ClassVar[str] = "auto"
    loss: ClassVar[str] = "rounded"

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._merged import check_whole

        check_whole(model, processor, "a merged model")

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from luthier.interop.formats._merged import difference, probe, save_merged
        from luthier.models.quiet import quiet

        model: Any = outgoing.model
        adapted = probe(model)
        save_merged(model, outgoing.processor, folder, outgoing.name)
        with quiet():
            kind = _plain(type(model))
            again = kind.from_pretrained(folder, dtype="auto", use_safetensors=True, trust_remote_code=False)
        change, largest = difference(adapted, probe(again.eval()))
        return {"the output": change / max(largest, 1e-30)} if change else {}


def _plain(cls: type) -> Any:
    """The class of the base under an adapted one."""
    return vars(cls).get("_luthier_base", cls)
