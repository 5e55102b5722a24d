"""The folders of AdapterHub's library `adapters`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.interop.formats._low_rank import LowRankFormat

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEADS = ("model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True)
class AdapterHub(LowRankFormat):
    """adapter_config.json, adapter.safetensors ↔ LoRA, DoRA, IA3, bottlenecks

    Read are LoRA of the single and of GPT-2's fused layers (A stacks q, k and v, as far as they are adapted), VeRA,
    DoRA, IA3, from safetensors or pytorch_adapter.bin, bottlenecks behind attention and MLP (Houlsby's everywhere;
    Pfeiffer's, which reads the stream, where the block norms its inputs, as Llama and GPT-2 do), prefixes with or
    without their MLP. DoRA comes in as `adapters` runs it: the norm leaves the scale out and the bias is scaled as
    well; both are told and made up for. A head that was saved beside the adapter comes in as full parameters where
    transformers' class has it.

    Written are forms of low rank, DoRA on layers without bias, IA3 and bottlenecks, where `adapters` has a place for
    them in Llama, Mistral, BERT, RoBERTa and GPT-2, and a head that was trained whole beside them. There is one rank:
    lower ones are filled up, which changes nothing. It is loaded by `load_adapter(FOLDER, use_safetensors=True)`.
    """

    paper = "adapters 1.3 (Poth et al. 2023, arXiv 2311.11077), `load_adapter`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._files import holds

        return holds(folder, CONFIG, WEIGHTS, ("config", "model_type"))

    def base(self, folder: Path) -> str | None:
        told = _config(folder).get("model_name")
        return told if isinstance(told, str) and told else None

    def task(self, folder: Path) -> str | None:
        from luthier.core.records import read_json
        from luthier.models.load import CLASS_TASKS, task_of_class

        kind, beside = str(_config(folder).get("model_class")), folder / "head_config.json"
        told = task_of_class(kind) if kind.endswith(tuple(CLASS_TASKS)) else None
        head = read_json(beside) if told == "classification" and beside.is_file() else {}
        return "regression" if isinstance(head, dict) and head.get("num_labels") == 1 else told

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

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._adapterhub_layout import layout_of

        layout_of(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.core.records import write_json
        from luthier.interop.formats._adapterhub_bottleneck import head_of
        from luthier.interop.formats._adapterhub_contents import contents
        from luthier.interop.formats._adapterhub_layout import NAME
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import layers_of, trained_whole

        model, factoring = outgoing.model, self.factoring()
        found = layers_of(model, outgoing.name)
        whole = [each for each in found if trained_whole(each)]
        head = head_of(model, whole) if whole else {}
        layers = [each for each in found if each not in whole]
        if not layers:
            raise LuthierError(
                "this adapter trains parameters themselves and nothing else, and AdapterHub's folders want a method "
                "beside them; export it merged instead (--to merged)."
            )
        tensors, config = contents(model, layers, factoring, truncate=self.rank is not None)
        save_file(by_itself(tensors), folder / WEIGHTS[0], {"format": "pt"})
        write_json(folder / CONFIG, {**_about(model), "name": NAME, "config": config})
        if head:
            save_file(by_itself(head), folder / HEADS[0], {"format": "pt"})
            write_json(folder / "head_config.json", {**_about(model), **_labels(model), "name": None, "config": None})
        return factoring.lost


def _about(model: Any) -> dict[str, Any]:
    told = {"model_type": model.config.model_type, "model_class": type(model).__name__, "version": "adapters.1.3.0"}
    return {**told, "model_name": getattr(model, "name_or_path", ""), "hidden_size": model.config.hidden_size}


def _labels(model: Any) -> dict[str, Any]:
    return {"label2id": dict(model.config.label2id), "num_labels": model.config.num_labels}


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.records import read_json

    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise LuthierError(f"{folder / CONFIG} is not a configuration of AdapterHub's (no config in it).")
    return config


def _tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    from luthier.interop.formats._files import inside, read_tensors

    return read_tensors(inside(folder, next((name for name in names if (folder / name).is_file()), names[-1])))
