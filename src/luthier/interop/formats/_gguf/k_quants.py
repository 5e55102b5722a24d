"""The mixtures of 4 to 6 bits of llama.cpp: which tensor gets how many, and its own quantiser (of xllamacpp)."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError

BLOCK = 256
"""Numbers that share scales; a matrix whose rows are no multiple is stored in blocks of 32."""
MIXTURES = {"q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}
"""What most matrices of a mixture are stored in."""
SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What stands in where rows are no multiple of a block, as in llama.cpp."""
MORE = re.compile(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight")


def stored_as(mixture: str, name: str, width: int, blocks: int, tied: bool) -> str:
    """Returns the type of a matrix by its name in GGUF, as `llama-quantize` chooses it for dense models.

    The head has 6 bits (a tied table is the head), and so have values and down-projections of the first and last
    eighth of the blocks and of every third between; the rest has what the mixture is called by. Not followed: in models
    of 70B (80 blocks), llama-quantize gives the values that have no 6 bits 5 where the mixture has 4.
    """
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    match = MORE.fullmatch(name)
    more = head or (match is not None and mixture != "q6_k" and _has_more(int(match[1]), blocks))
    wanted = "Q6_K" if more else MIXTURES[mixture]
    if not width % BLOCK:
        return wanted
    return ("Q8_0" if head else SMALLER[wanted]) if not width % 32 else "F16"


def _has_more(block: int, blocks: int) -> bool:
    eighth = blocks // 8
    return block < eighth or block >= 7 * blocks // 8 or (block - eighth) % 3 == 2


@functools.cache
def _quantiser() -> Any:
    try:
        from xllamacpp import xllamacpp  # type: ignore[import-not-found]

        found = ctypes.CDLL(str(Path(xllamacpp.__file__))).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError) as error:
        raise LuthierError(
            f"{', '.join(MIXTURES)} need llama.cpp's quantiser ({error}): pip install xllamacpp, or take q8_0."
        ) from error
    count, floats = ctypes.c_int64, ctypes.POINTER(ctypes.c_float)
    found.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, count, count, count, floats]
    found.restype = ctypes.c_size_t
    return found


def check() -> None:
    """Raises `LuthierError` where the quantiser is not installed."""
    _quantiser()


def quantize(values: Any, wanted: Any) -> Any:
    """Returns a matrix of float32 as the bytes of a type of ggml's (`gguf.GGMLQuantizationType`), row by row."""
    import numpy as np
    from gguf.quants import quant_shape_to_byte_shape

    made = np.zeros(quant_shape_to_byte_shape(values.shape, wanted), dtype=np.uint8)
    rows = values.size // values.shape[-1]
    source = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    wrote = _quantiser()(wanted.value, source, made.ctypes.data, 0, rows, values.shape[-1], None)
    if wrote != made.nbytes:
        raise LuthierError(f"llama.cpp's quantiser wrote {wrote:,} bytes of {wanted.name}; expected {made.nbytes:,}.")
    return made
