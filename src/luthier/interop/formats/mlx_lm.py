"""The format of mlx-lm: folders with LoRA or DoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.contracts.format import Found, Outgoing
from luthier.core.errors import LuthierError
from luthier.interop.formats._low_rank import LowRankFormat

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"


@dataclass(frozen=True)
class MLXLM(LowRankFormat):
    """y + scale (x lora_a) lora_b ↔ adapters.safetensors, adapter_config.json

    lora_a is d_in x rank and lora_b rank x d_out, both transposed to ours, and alpha = scale · rank. Read are LoRA
    (tables and experts included), DoRA and blocks that were trained whole. The configuration says which blocks and keys
    are adapted, and a file with others is refused, as mlx-lm does. Of a tied table, mlx-lm changes what is looked up
    and what the head reads; both come in.

    Written are forms of low rank and DoRA on linear layers and tables, each layer by its full name among the keys, and
    parameters trained whole if nothing else was. mlx-lm has one rank and one scale: lower ranks are filled up with
    zeros, and the scale is 1. Written for Llama, Mistral, Qwen2, Qwen3, Gemma 3, Phi-3, GPT-2, Mixtral and Qwen3-MoE,
    whose names and layouts were compared by running mlx-lm; read for others too, with a warning.
    """

    paper = "mlx-lm 0.32 (Apple), `mlx_lm.lora`, `load_adapters`"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        from luthier.interop.formats._files import holds

        return holds(folder, CONFIG, (WEIGHTS,), ("lora_parameters",))

    def base(self, folder: Path) -> str | None:
        told = _config(folder).get("model")
        return told if isinstance(told, str) and told else None

    def evidence(self, folder: Path) -> dict[str, Any]:
        return {"library": "mlx-lm"} | ({"base": told} if (told := self.base(folder)) else {})

    def read(self, folder: Path, model: nn.Module) -> list[Found]:
        from luthier.interop.formats._files import inside, read_tensors
        from luthier.interop.formats._mlx_lm_read import adapted, trained_whole

        config = _config(folder)
        kind = config.get("fine_tune_type", "lora")
        if kind not in ("lora", "dora", "full"):
            raise LuthierError(f"{folder}: fine_tune_type is {kind!r}; expected lora, dora or full.")
        held = read_tensors(inside(folder, WEIGHTS))
        return trained_whole(folder, held, model) if kind == "full" else adapted(folder, config, held, model)

    def check_base(self, model: nn.Module, processor: Any) -> None:
        from luthier.interop.formats._mlx_lm_contents import names_of

        names_of(model)

    def write(self, outgoing: Outgoing, folder: Path) -> dict[str, float]:
        from safetensors.torch import save_file

        from luthier.core.records import write_json
        from luthier.interop.formats._files import by_itself
        from luthier.interop.formats._layers import changed_weights
        from luthier.interop.formats._mlx_lm_contents import contents

        factoring = self.factoring()
        layers = changed_weights(outgoing.model, outgoing.name)
        tensors, config = contents(outgoing.model, layers, factoring, truncate=self.rank is not None)
        save_file(by_itself(tensors), folder / WEIGHTS)
        write_json(folder / CONFIG, config | {"model": getattr(outgoing.model, "name_or_path", "")})
        return factoring.lost


def _config(folder: Path) -> dict[str, Any]:
    from luthier.core.records import read_json

    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise LuthierError(f"{folder / CONFIG} is not a configuration of mlx-lm's.")
    return config
