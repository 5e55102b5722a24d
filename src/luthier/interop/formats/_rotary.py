"""The rows of queries and keys, where a library rotates neighbours and transformers numbers half a head apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rotated_heads(name: str, config: Any) -> int | None:
    """How many heads the rows of a tensor belong to, for queries and keys; None for others."""
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return counts.get(name.split(".")[-2] if "." in name else "")


def paired(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (0, d/2), (1, d/2 + 1), … to neighbours."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def halved(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from neighbours to halves."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
