"""The folders of AdapterHub's library `adapters`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.format import Format, Found
from luthier.core.errors import LuthierError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEADS = ("model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True)
class AdapterHub(Format):
    """adapter_config.json, pytorch_adapter.bin → LoRA, VeRA, DoRA, IA3, bottlenecks or prefixes

    LoRA of the single and of GPT-2's fused layers (A stacks q, k and v, as far as they are adapted), VeRA, DoRA, IA3,
    bottlenecks behind attention and MLP (Houlsby's everywhere; Pfeiffer's, which reads the stream, where the block
    norms its inputs, as Llama and GPT-2 do), prefixes with or without their MLP. DoRA comes in as `adapters` runs it:
    the norm leaves the scale out and the bias is scaled as well; both are told and made up for. A head that was saved
    beside the adapter comes in as full parameters where transformers' class has it.
    """

    paper = "adapters 1.3 (Poth et al. 2023, arXiv 2311.11077), `load_adapter`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._files import holds

        return holds(folder, CONFIG, WEIGHTS, ("config", "model_type"))

    def base(self, folder: Path) -> str | None:
        told = _config(folder).get("model_name")
        return told if isinstance(told, str) and told else None

    def evidence(self, folder: Path) -> dict[str, Any]:
        told = {key: _config(folder).get(key) for key in ("version", "model_name", "model_class")}
        return {"library": "adapters"} | {key: value for key, value in told.items() if isinstance(value, str)}

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._adapterhub_read import READERS, head

        whole = _config(folder)
        config = whole["config"]
        kind = config.get("architecture")
        if not isinstance(kind, str | None) or kind not in READERS:
            known = ", ".join(str(each or "bottleneck") for each in READERS)
            raise LuthierError(f"{folder} is {kind} of adapters, which is not read here; {known} are.")
        held = _tensors(folder, WEIGHTS)
        if not held:
            raise LuthierError(f"{folder} holds no tensors to import.")
        beside = _tensors(folder, HEADS) if any((folder / name).is_file() for name in HEADS) else {}
        return [*READERS[kind](folder, config, held, model), *head(folder, beside, model)]


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.files import read_json

    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise LuthierError(f"{folder / CONFIG} is not a configuration of AdapterHub's (no config in it).")
    return config


def _tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    from luthier.interop.formats._files import inside, read_tensors

    return read_tensors(inside(folder, next((name for name in names if (folder / name).is_file()), names[-1])))
