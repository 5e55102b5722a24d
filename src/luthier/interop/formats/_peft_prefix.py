"""PREFIX_TUNING of peft: keys and values before the text, which begins at position n there and at 0 here.

A rotation by positions is relative, so keys that are turned by n answer the same; what no rotation reaches answers the
same as it is. Which of the two a layer is, is measured on the base, for some do both. Where positions are added to the
input neither holds, and that is refused both ways.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.control import disabled
from luthier.core.adapters.swap import generative
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.format import Found
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.interop.formats._rotation import turns, window
from luthier.methods.forms.prefix import Prefix

KEY = "prompt_embeddings"
"""The only tensor of a folder, [n, layers · 2 · heads · d]."""


def read_prefix(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """PREFIX_TUNING as peft puts it in the cache; what its MLP made is stored."""
    if set(tensors) != {KEY} or tensors[KEY].dim() != 2:
        raise LuthierError(f"{folder} holds {', '.join(sorted(tensors))}; expected {KEY}, a matrix.")
    held, sites = tensors[KEY], _attentions(folder, model)
    heads, width = (sites[0].d_out, sites[0].d_in) if sites else (1, 1)
    if held.shape[1] != len(sites) * 2 * heads * width or len(held) != config.get("num_virtual_tokens"):
        raise LuthierError(
            f"{folder} holds prefixes of {tuple(held.shape)}; this base takes {config.get('num_virtual_tokens')} x "
            f"({len(sites)} layers x 2 x {heads} heads x {width})."
        )
    states = held.view(len(held), len(sites), 2, heads, width).permute(1, 2, 3, 0, 4)
    limit = _as_far_as(model, len(held), str(folder))
    back = rotation(model, sites, -len(held), str(folder))
    warnings.warn(
        f"{folder} holds prefixes. In peft the text begins at position {len(held)}, here at 0; the keys are turned "
        f"back by as much, which gives the same answers{limit}.",
        stacklevel=2,
    )
    found = {
        site.path: {"k": turn(key).contiguous(), "v": value.contiguous()}
        for site, turn, (key, value) in zip(sites, back, states, strict=True)
    }
    return [Found(Prefix(length=len(held)), "cache", found)]


def prefixes(model: Any, tuners: Sequence[TunerLayer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors, settings) of prefixes that stand before every attention of a model."""
    sites, found = list(select(model, "attention")), {tuner.site.path: tuner for tuner in tuners}
    if not generative(model):
        raise LuthierError(
            f"prefixes of a {type(model).__name__} have no place in peft's format as it is written here, which holds "
            "those of language models. `luthier predict --adapter` runs it as it is."
        )
    lengths = {tuner.params(torch.float32)["k"].shape[1] for tuner in tuners}
    if len(lengths) != 1 or set(found) != {site.path for site in sites}:
        raise LuthierError(
            f"prefixes stand before {len(found)} of {len(sites)} attentions ({len(lengths)} lengths), and peft's stand "
            "before all, with one length. `luthier generate --adapter` runs it as it is."
        )
    count, (heads, width) = lengths.pop(), (sites[0].d_out, sites[0].d_in)
    limit = _as_far_as(model, count, "peft's prefixes")
    with disabled(model):
        ahead, rows = rotation(model, sites, count, "peft's prefixes"), []
    if limit:
        warnings.warn(f"peft answers as it does here{limit}.", stacklevel=2)
    for site, turn in zip(sites, ahead, strict=True):
        p = found[site.path].params(torch.float32)
        rows += [turn(p["k"]), p["v"]]
    held = torch.stack(rows).permute(2, 0, 1, 3).flatten(1)
    return {KEY: held}, {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": count,
        "num_layers": len(sites),
        "num_attention_heads": heads,
        "token_dim": heads * width,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }


def rotation(model: Any, sites: Sequence[Site], count: int, who: str) -> list[Callable[[Tensor], Tensor]]:
    """Returns, for each attention, what turns its keys [heads, n, d] by so many positions as the model itself does."""
    found = turns(model, sites, count)
    if isinstance(found, str):
        way = "here. Run it with peft." if count < 0 else "there. `luthier generate` runs it as it is."
        raise LuthierError(
            f"{who}: {found}, and behind prefixes peft moves the positions of the text by {abs(count)}, which may "
            f"change its answers {way}"
        )
    return found


def _attentions(folder: Path, model: nn.Module) -> list[Site]:
    try:
        return list(select(model, "attention"))
    except LuthierError as error:
        raise LuthierError(f"{folder} holds prefixes, and {error} Run it with peft.") from None


def _as_far_as(model: Any, count: int, who: str) -> str:
    """Until where the answers are the same, of a base of which some layers see a window of the text: peft's prefix has
    places in it, and leaves it as the text goes on, while here every token sees the prefix."""
    seen = window(model)
    if seen is None:
        return ""
    if seen <= count:
        raise LuthierError(
            f"{who}: this base has layers that see {seen} tokens, and peft counts {count} of the prefix among them, "
            "so that texts are answered otherwise there and here."
        )
    return (
        f" for texts of up to {seen - count} tokens: layers of this base see {seen}, and behind so many peft's "
        "prefix leaves what they see, while here it stays"
    )
