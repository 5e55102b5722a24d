"""What the files of AdapterHub's library hold, by the architecture that their configuration names."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.interop.formats._adapterhub_lora import GATED, Groups, grouped, number, read_lora, refuse
from luthier.interop.formats._adapterhub_reft import read_reft
from luthier.interop.formats._factors import own_paths
from luthier.interop.formats._peft_beside import whole_parameters
from luthier.methods.forms.bottleneck import Bottleneck

BOTTLENECK = re.compile(r"(?P<path>.+)\.adapters\.[^.]+\.(?P<end>adapter_(?:down\.0|up)\.(?:weight|bias))")
PREFIX = re.compile(r".+\.prefix_tunings\.[^.]+\.(?P<group>[^.]+)\.(?P<end>.+)")
ENDS = {
    **{"adapter_down.0.weight": "down", "adapter_down.0.bias": "down_bias"},
    **{"adapter_up.weight": "up", "adapter_up.bias": "up_bias"},
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "tanh": "tanh"}


STRANGE = {
    "ln_before": "a new norm stands before the bottleneck, and no form here has one.",
    "ln_after": "a new norm stands behind the bottleneck, and no form here has one.",
    "use_gating": GATED,
    "phm_layer": "compacters multiply Kronecker products, and no form here does.",
    "inv_adapter": "an invertible adapter stands behind the embeddings, and no form here does.",
    "is_parallel": "it reads what enters a norm and is added behind the layers that follow, and no form here does.",
    "cross_adapter": "adapters behind cross attention are not read here.",
}


def read_bottleneck(
    folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module
) -> list[Found]:
    """Bottlenecks behind attention and MLP, before the residual is added, or on the stream."""
    refuse(folder, config, STRANGE)
    activation, scale = ACTIVATIONS.get(str(config.get("non_linearity")).lower()), config.get("scaling", 1.0)
    if activation is None or type(scale) not in (int, float) or not math.isfinite(scale):
        raise LuthierError(
            f"{folder}: non_linearity={config.get('non_linearity')!r}, scaling={scale!r}; read here are "
            f"{', '.join(ACTIVATIONS)} and fixed scales."
        )
    if not config.get("original_ln_after", True):
        raise LuthierError(f"{folder}: original_ln_after=False leaves the residual out, which no form here does.")
    found: dict[tuple[str, int], Groups] = {}
    for path, tensors in grouped(folder, held, BOTTLENECK).items():
        if {ENDS[end] for end in tensors} != set(ENDS.values()):
            raise LuthierError(
                f"{folder}: {path} lacks a part of its bottleneck; it holds {', '.join(sorted(tensors))}."
            )
        if any(tensor.dim() != 1 + end.endswith("weight") for end, tensor in tensors.items()):
            raise LuthierError(f"{folder}: the bottleneck at {path} holds something else than matrices and biases.")
        kind, site = _behind(folder, path, bool(config.get("original_ln_before")), config, model)
        found.setdefault((kind, len(tensors["adapter_down.0.weight"])), {})[site] = {
            ENDS[end]: tensor for end, tensor in tensors.items()
        }
    return [
        Found(Bottleneck(dim=dim, activation=activation, scale=float(scale)), kind, sites)  # type: ignore[arg-type]
        for (kind, dim), sites in found.items()
    ]


def _behind(folder: Path, path: str, summed: bool, config: Mapping[str, Any], model: nn.Module) -> tuple[str, str]:
    """(kind, path) of what a bottleneck reads: the last layer of attention or MLP, or the stream."""
    block, _, place = path.rpartition(".")
    normed_first = place in ("attention_adapters", "output_adapters")
    if summed and (not normed_first or place == "attention_adapters"):
        raise LuthierError(
            f"{folder}: the bottleneck at {path} reads the sum with the residual (original_ln_before), which no module "
            "here gives"
            + (" before the block ends." if normed_first else ", and is added before the norm that it reads behind.")
        )
    if summed and config.get("residual_before_ln", True) is not True:
        raise LuthierError(f"{folder}: residual_before_ln={config['residual_before_ln']!r} has no equal here.")
    if summed:
        return "stream", own_paths(folder, [block], model)[block]
    owner = own_paths(folder, [block if normed_first else path], model)[block if normed_first else path]
    ends = LAST[place] if normed_first else ("dense",)
    known = {name for name, _ in model.named_modules()}
    site = next((f"{owner}.{end}" for end in ends if f"{owner}.{end}" in known), None)
    if site is None:
        raise LuthierError(
            f"{folder}: nothing at {owner} is the last layer that the bottleneck at {path} stands behind."
        )
    return "affine", site


LAST = {
    "attention_adapters": ("self_attn.o_proj", "attn.c_proj", "self_attn.dense", "self_attn.out_proj"),
    "output_adapters": ("mlp.down_proj", "mlp.c_proj", "mlp.fc2", "fc2"),
}
"""The last layer of attention and of MLP in blocks that norm their inputs."""


def read_prefix(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """Keys and values before those of each attention: stored flat, or what their MLP makes of them."""
    from luthier.core.sites.select import select
    from luthier.methods.forms.prefix import Prefix

    refuse(folder, config, {"use_gating": GATED})
    length = int(number(folder, config, "prefix_length"))
    names = {key: PREFIX.fullmatch(key) for key in held}
    strange = next((key for key, match in names.items() if match is None), None)
    if strange is not None:
        raise LuthierError(f"{folder} holds {strange}, which is not a tensor of a prefix.")
    groups = {match["group"] for match in names.values() if match}
    if len(groups) != 1 or length < 1:
        raise LuthierError(
            f"{folder} holds prefixes of {', '.join(sorted(groups))}; one kind of attention is read here."
        )
    ends = {match["end"]: held[key] for key, match in names.items() if match}
    left = config.get("leave_out") or []
    if not isinstance(left, list):
        raise LuthierError(f"{folder}: leave_out is {left!r}; expected a list of layers.")
    sites = [site for site in select(model, "attention") if site.layer not in left]
    numbers = _numbers(folder, config, ends)
    heads, width = (sites[0].d_out, sites[0].d_in) if sites else (1, 1)
    if numbers.numel() != length * len(sites) * 2 * heads * width:
        raise LuthierError(
            f"{folder} holds {numbers.numel():,} numbers of prefixes; this base takes {length} x {len(sites)} layers x "
            f"2 x {heads} heads x {width}."
        )
    if sites and getattr(model.get_submodule(sites[0].path), "is_causal", True):
        warnings.warn(
            f"{folder} holds prefixes of a decoder. They come in as adapters 1.3 runs them with attn_implementation="
            "'eager'; with 'sdpa', its default, it hides parts of the prefix and of the text from tokens, so what was "
            "trained under it answers otherwise here.",
            stacklevel=2,
        )
    states = numbers.view(length, len(sites), 2, heads, width).permute(1, 2, 3, 0, 4)
    tensors = {
        site.path: {"k": key.contiguous(), "v": value.contiguous()}
        for site, (key, value) in zip(sites, states, strict=True)
    }
    return [Found(Prefix(length=length), "cache", tensors)]


def _numbers(folder: Path, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> Tensor:
    if set(held) == {"control_trans"}:
        return held["control_trans"]
    wanted = {"wte.weight", *(f"control_trans.{turn}.{end}" for turn in (0, 2) for end in ("weight", "bias"))}
    if set(held) != wanted or str(config.get("non_linearity")).lower() != "tanh":
        raise LuthierError(
            f"{folder} holds {', '.join(sorted(held))} with non_linearity={config.get('non_linearity')!r}; expected "
            f"control_trans, or {', '.join(sorted(wanted))} with tanh."
        )
    try:
        inner = nn.functional.linear(held["wte.weight"], held["control_trans.0.weight"], held["control_trans.0.bias"])
        return nn.functional.linear(inner.tanh(), held["control_trans.2.weight"], held["control_trans.2.bias"])
    except RuntimeError as error:
        raise LuthierError(f"{folder}: the tensors of the prefix do not fit each other ({error}).") from None


def head(folder: Path, held: Mapping[str, Tensor], model: nn.Module) -> list[Found]:
    """Returns the head that was saved beside an adapter, where transformers' class has it."""
    if not held:
        return []
    strange = next((key for key in held if key.startswith("heads.")), None)
    if strange is not None:
        raise LuthierError(
            f"{folder} holds a head of AdapterHub's own classes ({strange}), which no class of transformers has. Take "
            "the files of the head out of the folder to import the adapter alone."
        )
    names = own_paths(folder, list(held), model)
    return whole_parameters(folder, {}, {names[key]: t for key, t in held.items()}, model, tied=True)


Reader = Callable[[Path, Mapping[str, Any], Mapping[str, Tensor], nn.Module], list[Found]]
READERS: Mapping[str | None, Reader] = {
    "lora": read_lora,
    "prefix_tuning": read_prefix,
    "reft": read_reft,
    None: read_bottleneck,
}
"""By `architecture`."""
