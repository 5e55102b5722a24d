"""The source that reads folders of peft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.import_ import Found, Source
from luthier.core.errors import LuthierError


@dataclass(frozen=True)
class PEFT(Source):
    """adapter_config.json, adapter_model.safetensors → LoRA, DoRA or IA3, and full parameters

    LORA with ranks and alphas of each layer, the rsLoRA scale, `use_dora`, `lora_bias`, tables and transposed layers
    (GPT-2), ADALORA, IA3, LN_TUNING and TRAINABLE_TOKENS. Modules and biases trained beside them are kept as full
    parameters, single tokens and copies of one of two tied modules as low-rank changes. Outputs are peft's. Names of
    wrapped models (torch.compile, DDP) and of other versions of transformers are mapped. What changes the output and
    has no equal here is refused with the reason, and so are damage, missing layers and another base, which peft loads
    without a word.
    """

    paper = "peft 0.21 (Hugging Face), `PeftModel.from_pretrained`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        return (folder / "adapter_config.json").is_file()

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._files import inside, read_tensors
        from luthier.interop.formats._peft_config import refuse_method, refuse_unknown
        from luthier.interop.formats._peft_read import READERS

        config = _config(folder)
        refuse_method(folder, config["peft_type"], READERS)
        refuse_unknown(folder, config)
        names = ("adapter_model.safetensors", "adapter_model.bin")
        file = next((name for name in names if (folder / name).is_file()), names[0])
        return READERS[config["peft_type"]](folder, config, read_tensors(inside(folder, file)), model)

    def evidence(self, folder: Path) -> dict[str, Any]:
        config = _config(folder)
        told = {key: config.get(key) for key in ("peft_type", "peft_version", "base_model_name_or_path")}
        return {"library": "peft"} | {key: value for key, value in told.items() if isinstance(value, str)}


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.files import read_json

    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise LuthierError(f"{folder / 'adapter_config.json'} is not a configuration of peft's (no peft_type).")
    return config
