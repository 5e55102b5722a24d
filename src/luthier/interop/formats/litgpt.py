"""The folders of LitGPT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.interop.formats._low_rank import LowRankFormat

CONFIG, WEIGHTS = "hyperparameters.yaml", "lit_model.pth.lora"


@dataclass(frozen=True)
class LitGPT(LowRankFormat):
    """W + (alpha / r) B A ↔ lit_model.pth.lora, hyperparameters.yaml

    A fused layer gives queries, keys and values in that order, A stacks the factors of those that are adapted, B has
    their rows. Rows are as in transformers. Rank and alpha are lora_r and lora_alpha of hyperparameters.yaml, and so is
    which of the three are adapted. Read and written for Llama, Mistral and Qwen2.

    Written are forms of low rank. LitGPT adapts the same layers in every block, and all three of an MLP or none: what
    is not there is filled up, which changes nothing. `litgpt merge_lora` also wants model_config.yaml and the
    tokenizer's files, which are those of the base's folder in LitGPT.
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

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._litgpt import kind_of

        kind_of(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        import torch
        import yaml

        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import changed_weights
        from luthier.interop.formats._litgpt import contents

        model, factoring = outgoing.model, self.factoring()
        tensors, config = contents(model, changed_weights(model, outgoing.name), factoring)
        torch.save({"model": by_itself(tensors)}, folder / WEIGHTS)  # as Lightning's Fabric saves it
        told = {"checkpoint_dir": str(getattr(model, "name_or_path", "") or ""), "precision": "32-true", **config}
        (folder / CONFIG).write_text(yaml.safe_dump(told), encoding="utf-8")
        return factoring.lost

    def remarks(self, folder: Path, model: nn.Module) -> list[str]:
        return [
            "`litgpt merge_lora` also wants model_config.yaml and the tokenizer's files: copy them from the base's "
            "folder in LitGPT (`litgpt download`), and name that folder with --pretrained_checkpoint_dir."
        ]
