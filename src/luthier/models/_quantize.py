"""Quantised loading: weights packed as they are read, computed in the model's dtype."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from luthier.core.errors import LuthierError, near


def quantization(name: str | None) -> Any:
    """The transformers configuration of a quantisation (`nf4`, `int8`), or None."""
    if name is None:
        return None
    if name not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise LuthierError(f"no quantisation {name!r}{near(name, QUANTIZATIONS) or '.'} There are: {known}.")
    return QUANTIZATIONS[name]()


def _nf4() -> Any:
    """4-bit NormalFloat with quantised constants (Dettmers et al. 2023, arXiv 2305.14314)."""
    _require("bitsandbytes", "nf4")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def _int8() -> Any:
    """8-bit integer weights, one scale an output row; activations keep their type.

    torchao's, since bitsandbytes casts every input to float16.
    """
    _require("torchao", "int8")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(version=2))


def _require(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise LuthierError(f"{name} needs {module}: pip install 'luthier[quant]'")


QUANTIZATIONS: dict[str, Callable[[], Any]] = {"nf4": _nf4, "int8": _int8}
