"""Prefixes: keys and values put before those of an attention, through transformers' attention interface.

Nothing enters the cache, no token moves and no mask of the user changes, so cached and uncached passes, padding,
encoders, gradient checkpointing and mixed batches need no case of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.core.adapters.state import State
from luthier.core.adapters.swap import adapters_of
from luthier.core.contracts.form import edit_function_of
from luthier.core.errors import LuthierError
from luthier.core.sites.attention import Attention, attention_configs, attention_named, register_attention
from luthier.core.sites.packing import PACKED, packed_name

MARK = "luthier_prefixed_"


def _prefixed(name: str) -> Attention:
    """The attention of that name, behind the prefixes of its module."""

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        adapters = adapters_of(module)
        for tuner in adapters.caches if adapters else ():
            assert adapters is not None
            k, v = edit_function_of(tuner.active())(tuner.params(key.dtype))
            causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
            attention_mask = _widen(attention_mask, query, key, k.shape[1], causal)
            if (bias := kwargs.get("position_bias")) is not None:  # T5: relative positions, none to a prefix
                kwargs["position_bias"] = nn.functional.pad(bias, (k.shape[1], 0))
            if adapters.current.rows is not None:
                own = adapters.current.row_mask(tuner.name, query)
                attention_mask = _only(own, attention_mask, k.shape[1])
            key, value = _before(k, key), _before(v, value)
        return attention_named(name, module)(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _before(prefix: Tensor, tensor: Tensor) -> Tensor:
    return torch.cat([prefix.expand(tensor.shape[0], -1, -1, -1), tensor], dim=2)


def _widen(mask: Tensor | None, query: Tensor, key: Tensor, n: int, causal: bool) -> Tensor:
    """The mask with n columns before it that every query may see; causal where there was none."""
    steps, total = query.shape[2], key.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, steps, total, dtype=torch.bool, device=query.device)
        if causal and steps > 1:
            mask = mask.tril(total - steps)
    if mask.dim() != 4:
        raise LuthierError("prefix needs an attention that takes a 4-D mask: load with attn_implementation='sdpa'.")
    free = torch.ones if mask.dtype == torch.bool else torch.zeros
    shape = (*mask.shape[:3], n)
    return torch.cat([free(shape, dtype=mask.dtype, device=mask.device), mask], dim=-1)


def _only(rows: Tensor, mask: Tensor, n: int) -> Tensor:
    """Hides the first n columns from rows of other adapters."""
    hidden = 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.expand(len(rows), *mask.shape[1:])
    first = mask[..., :n].masked_fill(~rows, hidden)
    return torch.cat([first, mask[..., n:]], dim=-1)


def _route(model: nn.Module, on: bool) -> None:
    """Sends the model's attentions through the prefixed functions, or back."""
    for config in attention_configs(model):
        whole = str(config._attn_implementation)
        now = whole.removeprefix(PACKED)
        named = packed_name if now != whole else str  # where batches are packed, within that
        if on and now in ("sdpa", "eager"):
            register_attention(MARK + now, _prefixed(now), now)
            config._attn_implementation = named(MARK + now)
        elif not on and now.startswith(MARK):
            config._attn_implementation = named(now[len(MARK) :])


def refresh_prefixes(model: nn.Module, state: State) -> None:
    """Routes through the prefixed functions exactly while a prefix is attached."""
    wanted = any(container.caches for container in state.containers)
    if wanted != state.routed:
        _route(model, wanted)
        state.routed = wanted
