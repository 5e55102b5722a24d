"""The folders of torchtune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.interop.formats._low_rank import LowRankFormat

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.pt"


@dataclass(frozen=True)
class TorchTune(LowRankFormat):
    """W + (alpha / r) B A, or DoRA ↔ adapter_model.pt, adapter_config.json

    adapter_model.pt holds torchtune's own tensors, and is what it goes on from (`adapter_checkpoint`). It keeps the
    rows of queries and keys as neighbours that a rotation mixes (Llama, Mistral; not Qwen2), in factors B and in
    magnitudes. The file that torchtune converts for peft beside it is not read: its magnitudes keep torchtune's rows,
    and those of Qwen2 are turned though they were never otherwise; where that matters, it is told.

    Written are forms of low rank and DoRA on layers without bias, for Llama, Mistral and Qwen2. torchtune adapts the
    same layers in every block, and all three of an MLP or none: what is not there is filled up, which changes nothing.
    The configuration says what to build the model with: r, lora_alpha, the layers, use_dora.
    """

    paper = "torchtune 0.6 (PyTorch), `FullModelHFCheckpointer`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return (folder / WEIGHTS).is_file()

    def base(self, folder: Path) -> str | None:
        told = _config(folder).get("base_model_name_or_path")
        return told if isinstance(told, str) and told else None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "torchtune"} | ({"base": told} if (told := self.base(folder)) else {})

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._files import inside, read_tensors
        from luthier.interop.formats._torchtune import read

        return read(folder, _config(folder), read_tensors(inside(folder, WEIGHTS)), model)

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._torchtune import kind_of

        kind_of(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        import torch

        from luthier.core.records import write_json
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import changed_weights
        from luthier.interop.formats._torchtune import contents

        model, factoring = outgoing.model, self.factoring()
        layers = changed_weights(model, outgoing.name)
        tensors, config = contents(model, layers, factoring, truncate=self.rank is not None)
        torch.save(by_itself(tensors), folder / WEIGHTS)
        write_json(folder / CONFIG, config | {"base_model_name_or_path": getattr(model, "name_or_path", "")})
        return factoring.lost


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.records import read_json
    from luthier.interop.formats._files import inside

    config = read_json(inside(folder, CONFIG))
    if not isinstance(config, dict):
        raise LuthierError(f"{folder / CONFIG} is not a configuration of torchtune's.")
    return config
