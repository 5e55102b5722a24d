"""Quantised loading: weights are quantised as they are read, and computed in the model's dtype."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from luthier.core.errors import LuthierError, near
from luthier.models.trust import trusted


def quantization(name: str | None, model_class: Any, config: Any) -> Any:
    """Returns the transformers configuration of a quantisation (`nf4`, `int8`), or None.

    Heads stay dense: a new one has nothing to quantise yet, and must train.
    """
    if name is None:
        return None
    if name not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise LuthierError(f"no quantisation {name!r}{near(name, QUANTIZATIONS) or '.'} There are: {known}.")
    return QUANTIZATIONS[name](_heads(model_class, config))


def _heads(model_class: Any, config: Any) -> list[str]:
    """The children of the model that its base has not, such as `lm_head` or `classifier`."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = model_class.from_config(config, trust_remote_code=trusted())
        base = AutoModel.from_config(config, trust_remote_code=trusted())
    body = {model.base_model_prefix, *(name for name, _ in base.named_children())}
    return [name for name, _ in model.named_children() if name not in body]


def _nf4(dense: list[str]) -> Any:
    """4-bit NormalFloat with quantised constants (Dettmers et al. 2023, arXiv 2305.14314)."""
    _require("bitsandbytes", "nf4")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=dense,
    )


def warn_of_odd_widths(model: Any) -> None:
    """Warns where bitsandbytes (from 0.50) dequantises 4-bit weights wrongly: on a CPU, in rows of a width that is no
    multiple of a block."""
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and module.weight.device.type == "cpu" and module.in_features % state.blocksize:
            warnings.warn(
                f"bitsandbytes dequantises NF4 wrongly on CPUs where a width is not a multiple of {state.blocksize}, "
                f"and {path} has {module.in_features}: this quantised model is not the one it was made from. Use int8.",
                stacklevel=3,
            )
            return


def _int8(dense: list[str]) -> Any:
    """8-bit integer weights, one scale an output row; activations keep their type.

    torchao's, since bitsandbytes casts every input to float16.
    """
    _require("torchao", "int8")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=dense)


def _require(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise LuthierError(f"{name} needs {module}: pip install 'luthier[quant]'")


QUANTIZATIONS: dict[str, Callable[[list[str]], Any]] = {"nf4": _nf4, "int8": _int8}
