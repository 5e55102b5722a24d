"""A small transformer from scratch, on whatever a model is given: ids, pictures, sounds or spectrograms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, ones
from torch.nn import functional

from luthier.core.contracts.form import Params, kaiming

HEADS = 4
"""Attention heads of the small model."""


def fresh(entering: int, ids: bool, width: int, depth: int) -> dict[str, Tensor]:
    """Draws the parameters: `entry` is a table of ids, or reads a patch; the rest is stacked by depth."""
    each = lambda rows, columns: torch.stack([kaiming(rows, columns) for _ in range(depth)])  # noqa: E731
    return {
        "entry": torch.randn(entering, width) / math.sqrt(width) if ids else kaiming(width, entering),
        "norms": ones(2 * depth + 1, width),
        "attention": each(3 * width, width),
        "attention_out": each(width, width),
        "up": each(4 * width, width),
        "down": each(width, 4 * width),
    }


def vector(p: Params, x: Tensor, mask: Tensor | None, patch: int, first: bool) -> Tensor:
    """Returns one vector for each row of x, [rows, width]: its tokens behind the last block, pooled."""
    ids = not x.is_floating_point()
    real = mask if ids or mask is None else patches(mask, patch).any(-1)
    h = functional.embedding(x, p["entry"]) if ids else patches(x.to(p["entry"].dtype), patch) @ p["entry"].mT
    h = h + positions(h, real)
    norm = lambda h, i: functional.layer_norm(h, h.shape[-1:], p["norms"][i])  # noqa: E731
    for i in range(len(p["up"])):
        h = h + attention(norm(h, 2 * i) @ p["attention"][i].mT, real) @ p["attention_out"][i].mT
        h = h + functional.gelu(norm(h, 2 * i + 1) @ p["up"][i].mT) @ p["down"][i].mT
    return pooled(norm(h, -1), real, first)


def pooled(h: Tensor, mask: Tensor | None, first: bool) -> Tensor:
    """The first real token of each row of h [..., rows, tokens, d], or the mean of all."""
    if first:
        return h[..., 0, :] if mask is None else h[..., torch.arange(len(mask)), mask.int().argmax(1), :]
    if mask is None:
        return h.mean(-2)
    held = mask[..., None].to(h.dtype)
    return (h * held).sum(-2) / held.sum(-2).clamp(min=1)


def attention(qkv: Tensor, real: Tensor | None) -> Tensor:
    """Attention of all tokens of a row to its real ones, from queries, keys and values [rows, tokens, 3 w]."""
    q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    found = functional.scaled_dot_product_attention(q, k, v, None if real is None else real[:, None, None])
    return found.transpose(1, 2).flatten(2)


def positions(h: Tensor, real: Tensor | None) -> Tensor:
    """Sines and cosines of the places of tokens in their row, [rows or 1, tokens, width]; padding is not counted."""
    tokens, width = h.shape[-2:]
    rates = torch.exp(torch.arange(0, width, 2, device=h.device) * (-math.log(10_000) / width))
    places = torch.arange(tokens, device=h.device)[None] if real is None else (real.long().cumsum(1) - 1).clamp(min=0)
    angles = places[..., None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(h.dtype)


def patches(x: Tensor, side: int) -> Tensor:
    """Cuts pictures [rows, c, h, w] and spectrograms [rows, a, b] into patches of `side`, sounds [rows, n] into frames
    of its square; returns [rows, patches, features]. What is left at the end is not read."""
    if x.dim() == 2:
        n = min(side**2, x.shape[1])
        return x[:, : x.shape[1] // n * n].unflatten(1, (-1, n))
    pictures = x[:, None] if x.dim() == 3 else x
    a, b = (min(side, size) for size in pictures.shape[-2:])
    return functional.unfold(pictures, (a, b), stride=(a, b)).mT
