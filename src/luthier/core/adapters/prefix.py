"""Prefixes: keys and values put before those of an attention, through transformers' attention interface.

Nothing enters the cache, no token moves and no mask of the user changes, so cached and uncached passes, padding,
encoders, gradient checkpointing and mixed batches need no case of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.share import Share, by_name, joined
from luthier.core.adapters.state import State
from luthier.core.adapters.swap import adapters_of
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.form import edit_function_of
from luthier.core.errors import LuthierError
from luthier.core.sites.attention import Attention, attention_configs, attention_named, register_attention
from luthier.core.sites.packing import PACKED, packed_name

MARK = "luthier_prefixed_"


def _prefixed(name: str) -> Attention:
    """The attention of that name, behind the prefixes of its module."""

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        adapters = adapters_of(module)
        inner, tuners = attention_named(name, module), adapters.caches if adapters else ()
        if not tuners:
            return inner(module, query, key, value, attention_mask, *args, **kwargs)
        assert adapters is not None
        current, given = adapters.current, _Given(query, key, value, attention_mask, kwargs)
        if current.rows is None:
            return _behind(current.acting(tuners), given, module, inner, args)
        outputs: list[tuple[Share, tuple[Tensor, Any]]] = []
        for each, own in by_name(tuners, lambda tuner: tuner.name).items():
            if (share := current.share([each], query)) is not None:
                with current.within(share, own[0].owner, False):
                    outputs.append((share, _behind(own, given.of(share), module, inner, args)))
        if (rest := current.share([tuner.name for tuner in tuners], query, others=True)) is not None:
            outputs.append((rest, _behind([], given.of(rest), module, inner, args)))
        found = joined([(share, out) for share, (out, _) in outputs])
        weights = outputs[0][1][1] if len(outputs) == 1 else None  # of different widths they cannot be one tensor
        return found, weights

    return attend


@dataclass(frozen=True)
class _Given:
    """What an attention is given."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    more: Mapping[str, Any]

    def of(self, share: Share) -> _Given:
        """Returns the same for the rows of one adapter."""
        rows = len(self.query)
        take = lambda t: share.take(t) if isinstance(t, Tensor) and t.dim() > 1 and len(t) == rows else t  # noqa: E731
        more = {key: take(value) for key, value in self.more.items()}
        return _Given(take(self.query), take(self.key), take(self.value), take(self.mask), more)


def _behind(tuners: Sequence[TunerLayer], given: _Given, module: nn.Module, inner: Attention, args: tuple) -> Any:
    """The attention behind the prefixes of these tuner layers."""
    query, key, value, mask, kwargs = given.query, given.key, given.value, given.mask, dict(given.more)
    for tuner in tuners:
        k, v = edit_function_of(tuner.active())(tuner.params(key.dtype))
        causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
        mask = _widen(mask, query, key, k.shape[1], causal)
        if (bias := kwargs.get("position_bias")) is not None:  # T5: relative positions, none to a prefix
            kwargs["position_bias"] = nn.functional.pad(bias, (k.shape[1], 0))
        key, value = _before(k, key), _before(v, value)
    return inner(module, query, key, value, mask, *args, **kwargs)


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
