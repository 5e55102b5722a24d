"""Attentions that go through transformers' attention interface: their shapes, and functions put in their place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from luthier.core.sites.probe import run_bare
from luthier.core.sites.structure import base_modules

Attention = Callable[..., Any]
"""`f(module, query, key, value, mask, …)`, as transformers calls it."""
WATCH = "luthier_watched_"
_seen: ContextVar[dict[int, tuple[int, int]] | None] = ContextVar("shapes of keys", default=None)
"""While a pass is watched: (heads, d_head) of the keys by the id of the attention module."""


def attention_named(name: str, module: nn.Module) -> Attention:
    """Returns the attention function of that name; the eager one is the module's own."""
    if name == "eager":
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return sdpa_attention_forward if name == "sdpa" else ALL_ATTENTION_FUNCTIONS[name]


def register_attention(name: str, function: Attention, like: str) -> None:
    """Makes an attention function known to transformers, with the masks of the implementation `like`; once."""
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[like])


def attention_configs(model: nn.Module) -> list[Any]:
    """Returns the configurations by which a model's attentions choose their implementation."""
    configs = (vars(module).get("config") for _, module in base_modules(model))
    return list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())


def attention_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns {path: (key heads, head width)} of every attention that a small pass sends through the interface."""
    paths = {id(module): path for path, module in base_modules(model)}
    token = _seen.set(seen := {})
    try:
        with _watched(model):
            run_bare(model)
    finally:
        _seen.reset(token)
    return {paths[key]: shape for key, shape in seen.items()}


@contextmanager
def _watched(model: nn.Module) -> Iterator[None]:
    """The model's attentions tell their shapes while the context lasts."""
    before = [(config, config._attn_implementation) for config in attention_configs(model)]
    bare = next(model.parameters()).is_meta
    try:
        for config, name in before:
            if name in ("sdpa", "eager") or str(name).startswith("luthier_"):
                # sdpa's masks look at their numbers, of which a model without weights has none
                name = "eager" if bare and name == "sdpa" else name
                register_attention(WATCH + name, _watching(name), name)
                config._attn_implementation = WATCH + name
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _watching(name: str) -> Attention:
    """The attention of that name, which notes the shapes of its keys first."""

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        if (seen := _seen.get()) is not None:
            seen[id(module)] = (key.shape[1], key.shape[-1])
        return attention_named(name, module)(module, query, key, value, attention_mask, *args, **kwargs)

    return attend
