"""The format of peft: the change alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.interop.formats._low_rank import LowRankFormat

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class PEFT(LowRankFormat):
    """ΔW = B A ↔ adapter_model.safetensors, adapter_config.json

    Read are LORA with ranks and alphas of each layer, the rsLoRA scale, `use_dora`, `lora_bias`, tables, convolutions
    and transposed layers (GPT-2), block-diagonal factors (BD-LoRA), ADALORA, IA3, LN_TUNING and TRAINABLE_TOKENS; VERA,
    LOHA and LOKR as the LoRA that their product is. Modules and biases trained beside them are kept as full parameters,
    single tokens and copies of one of two tied modules as low-rank changes. Adapters of single experts, as transformers
    4 had them, are stacked on the parameter that transformers 5 keeps. Outputs are peft's. Names of wrapped models
    (torch.compile, DDP) and of other versions of transformers are mapped. What changes the output and has no equal here
    is refused with the reason, and so are damage, missing layers and another base, which peft loads without a word.

    Forms of low rank are written exactly, in float32, at the rank of each layer and with the scale inside B, those on
    fused experts and routers as `target_parameters`; so are DoRA (`use_dora`) and IA3 as methods of their own, modules
    trained in full (a new head) as `modules_to_save`, or as LN_TUNING where nothing else is trained and all are norms,
    linear layers or tables that are called with their input, prefixes as PREFIX_TUNING, and MHR of several tasks as
    POLY, whose `task_ids` are the places of their names. Other affine forms are truncated by SVD. What no weight can
    express (an edit of the stream, positions) is refused. With a rank given, DoRA and IA3 are written as plain low-rank
    changes too, for engines without them.
    """

    paper = "peft 0.21 (Hugging Face), `PeftModel.from_pretrained`, `save_pretrained`"
    base_dtype: ClassVar[str] = "auto"  # what leaves is worked out in float32 at least

    engine: Literal["any", "vllm", "sglang", "tgi", "transformers"] = "any"
    """Engine that is to serve it. What the engine refuses or passes over is refused, and what it wants is there too:
    one rank, and layers that it runs as one, with factors that change nothing."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._files import holds
        from luthier.interop.formats.torchtune import TorchTune

        return not TorchTune.fits(folder) and holds(folder, CONFIG, WEIGHTS, ("peft_type",))

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._files import inside, names_in, read_tensors
        from luthier.interop.formats._peft_beside import met
        from luthier.interop.formats._peft_config import merging, refuse_method, refuse_start, refuse_unknown
        from luthier.interop.formats._peft_keys import constants, refuse_empty, that_count, without_name
        from luthier.interop.formats._peft_methods import READERS
        from luthier.interop.formats._peft_products import READERS as PRODUCTS

        config = _config(folder)
        readers = {**READERS, **PRODUCTS}
        file = _weights(folder)

        def names() -> list[str]:
            return names_in(inside(folder, file))

        def merged() -> str:
            return merging(names(), model)

        refuse_method(folder, config["peft_type"], readers, merged)
        refuse_unknown(folder, config, merged)
        refuse_start(folder, config, names, merged)
        tensors = without_name(folder, read_tensors(inside(folder, file), constants(names(), model)))
        refuse_empty(folder, tensors)
        return met(folder, readers[config["peft_type"]](folder, config, that_count(tensors), model), model)

    def base(self, folder: Path) -> str | None:
        told = _config(folder).get("base_model_name_or_path")
        return told if isinstance(told, str) and told else None

    def task(self, folder: Path) -> str | None:
        from luthier.interop.formats._files import inside, shapes_in
        from luthier.interop.formats._peft_tasks import TASKS, one_output

        told = TASKS.get(str(_config(folder).get("task_type")))
        single = told == "classification" and one_output(shapes_in(inside(folder, _weights(folder))))
        return "regression" if single else told

    def evidence(self, folder: Path) -> dict[str, Any]:
        config = _config(folder)
        told = {key: config.get(key) for key in ("peft_type", "peft_version", "base_model_name_or_path")}
        return {"library": "peft"} | {key: value for key, value in told.items() if isinstance(value, str)}

    def remarks(self, folder: Path, model: nn.Module) -> list[str]:
        from luthier.interop.formats._files import names_in
        from luthier.interop.formats._peft_contents import held
        from luthier.interop.formats._peft_engines import remarks

        return remarks(held(model, names_in(folder / WEIGHTS[0]), _config(folder)))

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.core.records import write_json
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import layers_of
        from luthier.interop.formats._peft_contents import common_config, contents

        model, factoring = outgoing.model, self.factoring()
        files = contents(model, layers_of(model, outgoing.name), factoring, self.engine)
        save_file(by_itself(files.tensors), folder / WEIGHTS[0], {"format": "pt"})
        saved = files.config.get("modules_to_save", [])
        write_json(folder / CONFIG, common_config(model, saved) | files.config)
        return factoring.lost


def _weights(folder: Path) -> str:
    return next((name for name in WEIGHTS if (folder / name).is_file()), WEIGHTS[0])


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.records import read_json

    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise LuthierError(f"{folder / CONFIG} is not a configuration of peft's (no peft_type).")
    return config
