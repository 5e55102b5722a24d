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
        raise LuthierError(
            f"no quantisation {name!r}{near(name, QUANTIZATIONS)} There are: {known}."
        )
    return QUANTIZATIONS[name]()


def _nf4() -> Any:
    """4-bit NormalFloat blocks with quantised constants (Dettmers et al. 2023, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    _require("bitsandbytes", "nf4")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )


def _int8() -> Any:
    """8-bit integer weights, one scale an output row."""
    from transformers import BitsAndBytesConfig

    _require("bitsandbytes", "int8")
    return BitsAndBytesConfig(load_in_8bit=True)


def _require(module: str, name: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise LuthierError(f"{name} needs {module}: pip install 'luthier[quant]'")


QUANTIZATIONS: dict[str, Callable[[], Any]] = {"nf4": _nf4, "int8": _int8}
