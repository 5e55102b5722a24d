"""Attention heads during a pass: what enters and leaves them is noted or replaced, through transformers' interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.attention import Attention, attention_configs, attention_named, register_attention
from luthier.core.sites.structure import base_modules, block_lists

MARK = "luthier_heads_"
Replaced = Mapping[str, tuple[Tensor, Tensor]]
"""By the path of an attention: values, and the share of them that each head takes, [heads]."""
Entering = Mapping[str, tuple[tuple[Tensor, Tensor, Tensor], int]]
"""By the path of an attention: query, key and value, and the head that takes them."""


@dataclass
class Seen:
    """What a pass showed, by the path of the attention."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """What the heads give, before the output projection: [rows, positions, heads, width]."""
    inputs: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """Query, key and value, [rows, heads, positions, width]; keys and values have fewer heads where they share them."""


@dataclass
class _Pass:
    paths: Mapping[int, str]
    seen: Seen
    outputs: Replaced
    inputs: Entering


_current: ContextVar[_Pass | None] = ContextVar("heads of a pass", default=None)


@contextmanager
def heads(model: nn.Module, outputs: Replaced | None = None, inputs: Entering | None = None) -> Iterator[Seen]:
    """Notes the heads of every attention that goes through the interface, and replaces what is given.

    `outputs` mixes z ← m v + (1 - m) z with values v and a share m of each head; `inputs` gives one head of an
    attention another query, key and value. Nothing else changes, gradients flow. Not for two passes at a time.
    """
    paths = {id(module): path for path, module in base_modules(model)}
    now = _Pass(paths, Seen(), outputs or {}, inputs or {})
    before = [(config, config._attn_implementation) for config in attention_configs(model)]
    token = _current.set(now)
    try:
        for config, name in before:
            if name in ("sdpa", "eager") or str(name).startswith("luthier_"):
                register_attention(MARK + name, _headed(name), name)
                config._attn_implementation = MARK + name
        yield now.seen
    finally:
        _current.reset(token)
        for config, name in before:
            config._attn_implementation = name


def refuse_headless(seen: Seen, model: nn.Module) -> None:
    """Raises `LuthierError` after a pass that no attention sent through the interface."""
    if not seen.outputs:
        raise LuthierError(
            f"no attention of this {type(model).__name__} goes through transformers' attention interface, so its heads "
            "cannot be told apart; load it with attn_implementation='sdpa' or 'eager'."
        )


def layers_of(model: nn.Module, paths: Any) -> dict[str, int]:
    """Returns the index of the block that holds each path; -1 outside the blocks."""
    found = {}
    for path in paths:
        inside = [
            int(path[len(stack) + 1 :].split(".")[0])
            for stack in block_lists(model)
            if path.startswith(f"{stack}.") and path[len(stack) + 1 :].split(".")[0].isdigit()
        ]
        found[path] = inside[0] if inside else -1
    return found


def _headed(name: str) -> Attention:
    """The attention of that name between what is noted and what is replaced."""

    def attend(module, query, key, value, attention_mask, *args, **kwargs):
        plain = attention_named(name, module)
        if (now := _current.get()) is None:
            return plain(module, query, key, value, attention_mask, *args, **kwargs)
        path = now.paths[id(module)]
        now.seen.inputs[path] = (query, key, value)
        found, *rest = plain(module, query, key, value, attention_mask, *args, **kwargs)
        if path in now.inputs:
            (q, k, v), head = now.inputs[path]
            other = plain(module, q, k, v, attention_mask, *args, **kwargs)[0]
            found = found.clone()
            found[:, :, head] = other[:, :, head]
        if path in now.outputs:
            values, share = now.outputs[path]
            share = share.to(found)[:, None]
            found = share * values.to(found) + (1 - share) * found
        now.seen.outputs[path] = found
        return (found, *rest)

    return attend
