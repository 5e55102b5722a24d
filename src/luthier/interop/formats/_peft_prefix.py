"""PREFIX_TUNING of peft: keys and values before the text, which begins at position n there and at 0 here.

A rotation by positions is relative, so keys that are turned by n answer the same. Where positions are added to the
input they do not, and that is refused both ways.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.swap import generative
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.contracts.format import Found
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.methods.forms.prefix import Prefix

KEY = "prompt_embeddings"
"""The only tensor of a folder, [n, layers · 2 · heads · d]."""
FIXED = ("default", "linear", "llama3", "yarn")
"""Kinds of rotation whose angles do not depend on how long a text is."""


def read_prefix(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """PREFIX_TUNING as peft puts it in the cache; what its MLP made is stored."""
    if set(tensors) != {KEY} or tensors[KEY].dim() != 2:
        raise LuthierError(f"{folder} holds {', '.join(sorted(tensors))}; expected {KEY}, a matrix.")
    held, sites = tensors[KEY], list(select(model, "attention"))
    heads, width = (sites[0].d_out, sites[0].d_in) if sites else (1, 1)
    if held.shape[1] != len(sites) * 2 * heads * width or len(held) != config.get("num_virtual_tokens"):
        raise LuthierError(
            f"{folder} holds prefixes of {tuple(held.shape)}; this base takes {config.get('num_virtual_tokens')} x "
            f"({len(sites)} layers x 2 x {heads} heads x {width})."
        )
    states = held.view(len(held), len(sites), 2, heads, width).permute(1, 2, 3, 0, 4)
    back = rotation(model, sites, -len(held), str(folder))
    warnings.warn(
        f"{folder} holds prefixes. In peft the text begins at position {len(held)}, here at 0; the keys are turned "
        "back by as much, which gives the same answers.",
        stacklevel=2,
    )
    found = {
        site.path: {"k": back(key).contiguous(), "v": value.contiguous()}
        for site, (key, value) in zip(sites, states, strict=True)
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
    ahead = rotation(model, sites, count, "peft's prefixes")
    rows = []
    for site in sites:
        p = found[site.path].params(torch.float32)
        rows += [ahead(p["k"]), p["v"]]
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


def rotation(model: Any, sites: Sequence[Site], count: int, who: str) -> Callable[[Tensor], Tensor]:
    """Returns what turns keys [heads, n, d] by so many positions, as the model's own attention does."""
    decoder = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else None
    rotary: Any = dict(decoder.named_children()).get("rotary_emb") if isinstance(decoder, nn.Module) else None
    rope = getattr(model.config, "rope_parameters", None) or {}
    turn = vars(sys.modules[type(model.get_submodule(sites[0].path)).__module__]).get("apply_rotary_pos_emb")
    if getattr(rotary, "inv_freq", None) is None or turn is None or rope.get("rope_type") not in FIXED:
        lacks = f"this base ({type(model).__name__}) has no rotary positions of one kind ({', '.join(FIXED)})"
        raise _moved(f"{who}: {lacks}", count, "would")
    if why := _turned_apart(model, sites):
        raise _moved(f"{who}: {why}", count, "might")
    cos, sin = rotary(torch.zeros(1, 1, 1), torch.tensor([[abs(count)]]))
    cos, sin = cos.float() / rotary.attention_scaling, sin.float() / rotary.attention_scaling
    turned = 2 * len(rotary.inv_freq)  # GPT-OSS has each angle once, others twice

    def by(key: Tensor) -> Tensor:
        part = key[None, ..., :turned].float()
        return torch.cat([turn(part, part, cos, sin if count > 0 else -sin)[1][0], key[..., turned:]], -1)

    return by


def _moved(why: str, count: int, how: str) -> LuthierError:
    """What is said where positions that move by `count` may change an answer."""
    way = "here. Run it with peft." if count < 0 else "there. `luthier generate` runs it as it is."
    return LuthierError(
        f"{why}, and behind prefixes peft moves the positions of the text by {abs(count)}, so it {how} answer "
        f"otherwise {way}"
    )


def _turned_apart(model: Any, sites: Sequence[Site]) -> str | None:
    """Why a model may not turn the keys of every layer from their first dimension on; None where it does."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    if getattr(config, "qk_rope_head_dim", None):
        return "this base (multi-head latent attention) turns the last dimensions of a key alone"
    for module in (model.get_submodule(site.path) for site in sites):
        kind = getattr(type(module), "_luthier_base", type(module))
        if not _turns_always(kind):
            return f"this base's {kind.__name__} turns keys under a condition, which some layers need not meet"
    return None


@functools.cache
def _turns_always(kind: type[nn.Module]) -> bool:
    """Whether an attention's forward turns its keys whatever layer it is of: SmolLM3's, Cohere 2's do not."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(kind.forward))))
    except (OSError, TypeError, SyntaxError):
        return False
    steps = tree.body[0].body if isinstance(tree.body[0], ast.FunctionDef) else []
    plain = [each for each in steps if isinstance(each, ast.Assign)]
    calls = [each for step in plain for each in ast.walk(step) if isinstance(each, ast.Call)]
    return any(isinstance(each.func, ast.Name) and each.func.id == "apply_rotary_pos_emb" for each in calls)
