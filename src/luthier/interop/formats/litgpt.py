"""The folders of LitGPT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Format, Found

CONFIG, WEIGHTS = "hyperparameters.yaml", "lit_model.pth.lora"


@dataclass(frozen=True)
class LitGPT(Format):
    """W + (alpha / r) B A in lit_model.pth.lora → LoRA

    A fused layer gives queries, keys and values in that order, A stacks the factors of those that are adapted, B has
    their rows. Rows are as in transformers. Rank and alpha are lora_r and lora_alpha of hyperparameters.yaml, and so is
    which of the three are adapted. Read for Llama, Mistral and Qwen2.
    """

    paper = "LitGPT 0.5 (Lightning AI), `litgpt finetune_lora`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return (folder / WEIGHTS).is_file()

    def base(self, folder: Path) -> str | None:
        from luthier.interop.formats._litgpt import config_of

        told = config_of(folder).get("checkpoint_dir")
        return told if isinstance(told, str) and told else None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "litgpt"} | ({"base": told} if (told := self.base(folder)) else {})

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._factors import lora_of
        from luthier.interop.formats._files import inside, read_tensors
        from luthier.interop.formats._litgpt import config_of, dropout_of, pairs_of

        config = config_of(folder)
        pairs = pairs_of(folder, config, read_tensors(inside(folder, WEIGHTS)), model)
        return lora_of(folder, pairs, model, dropout_of(config))
