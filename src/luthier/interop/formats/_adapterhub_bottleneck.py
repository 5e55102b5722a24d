"""Bottlenecks as AdapterHub's library stores them, and the head beside an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_parameters
from luthier.interop.formats._adapterhub_layout import NAME, Contents, Layout, Placed, blocks_of
from luthier.interop.formats._layers import Factoring, Layer
from luthier.methods.forms.bottleneck import Bottleneck

ENDS = {"adapter_down.0.weight": "down", "adapter_down.0.bias": "down_bias"}
ENDS |= {"adapter_up.weight": "up", "adapter_up.bias": "up_bias"}
SETTINGS: Mapping[str, Any] = {
    **{"adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "init_weights": "bert"},
    **{"init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None, "is_parallel": False},
    **{"ln_after": False, "ln_before": False, "original_ln_after": True, "phm_layer": False},
    **{"residual_before_ln": True, "stochastic_depth": 0.0, "use_gating": False},
}
"""What is the same in every configuration that is written."""


def bottlenecks(model: Any, layout: Layout, placed: Sequence[Placed], factoring: Factoring) -> Contents:
    """Bottlenecks behind attention and MLP, before the residual is added, or behind the block."""
    places = {each.layer.path: _place(layout, each) for each in placed}
    kinds = {kind for kind, _ in places.values()}
    if "stream" in kinds and len(kinds) > 1:
        raise LuthierError(
            "there are bottlenecks behind blocks and inside them, and one configuration of AdapterHub's has one kind; "
            "leave one out, or train them apart."
        )
    form = _common_form(placed)
    tensors: dict[str, Tensor] = {}
    blocks, without = blocks_of(model, placed)
    for block, held in blocks.items():
        have = {places[layer.path][0]: (places[layer.path][1], layer) for layer in held.values()}
        if len(have) < len(held):
            raise LuthierError(f"{block} has two bottlenecks at one place of AdapterHub's; it has room for one.")
        for kind in kinds:
            name, layer = have.get(kind, (_holder(layout, kind), None))
            tensors |= {f"{block}.{name}.adapters.{NAME}.{end}": t for end, t in _tensors(form, layer, placed).items()}
    where = {"mh_adapter": "attention" in kinds, "output_adapter": kinds != {"attention"}}
    config = {**SETTINGS, **where, "original_ln_before": "stream" in kinds, "leave_out": without}
    hidden = model.config.hidden_size
    settings = {"non_linearity": form.activation, "scaling": form.scale, "reduction_factor": _factor(hidden, form.dim)}
    return tensors, {**config, **settings}


def _place(layout: Layout, placed: Placed) -> tuple[str, str]:
    """(kind, the module of adapters that holds it) of a bottleneck."""
    if not placed.inside and layout.on_stream:
        return "stream", layout.on_stream
    for kind, places in (("attention", layout.behind_attention), ("mlp", layout.behind_mlp)):
        if placed.inside in places:
            return kind, places[placed.inside]
    known = [*layout.behind_attention, *layout.behind_mlp, *(["the block"] if layout.on_stream else [])]
    raise LuthierError(
        f"AdapterHub's adapters puts no bottleneck behind {placed.layer.path}; in this base it may stand behind "
        f"{', '.join(known)}."
    )


def _holder(layout: Layout, kind: str) -> str:
    return next(iter((layout.behind_attention if kind == "attention" else layout.behind_mlp).values()))


def _common_form(placed: Sequence[Placed]) -> Bottleneck:
    """The form of all of them, except for what training alone reads."""
    forms = {tuner.eval_form for each in placed for tuner in each.layer.tuners}
    told = {(f.dim, f.activation, f.scale, f.insertion) for f in forms if isinstance(f, Bottleneck)}
    if len(told) > 1:
        raise LuthierError(f"the bottlenecks differ in their settings ({told}), and AdapterHub has one configuration.")
    form = next(iter(forms))
    assert isinstance(form, Bottleneck)
    if form.insertion != "sequential":
        raise LuthierError(
            "these bottlenecks read what enters their module (insertion=parallel); AdapterHub's parallel ones read "
            "what enters a norm before it, which is another function."
        )
    return form


def _tensors(form: Bottleneck, layer: Layer | None, placed: Sequence[Placed]) -> dict[str, Tensor]:
    """Tensors by their ends; zeros above a unit projection where a block lacks what others have."""
    if layer is not None:
        p = layer.tuners[0].params(torch.float32)
        return {end: p[key] for end, key in ENDS.items()}
    width = len(placed[0].layer.tuners[0].params(torch.float32)["up_bias"])
    empty = {"down": torch.eye(form.dim, width), "down_bias": torch.zeros(form.dim)}
    empty |= {"up": torch.zeros(width, form.dim), "up_bias": torch.zeros(width)}
    return {end: empty[key] for end, key in ENDS.items()}


def _factor(hidden: int, dim: int) -> float:
    """The reduction factor by which adapters finds the width of a bottleneck: int(hidden // factor)."""
    factor = hidden / dim
    while hidden // factor < dim:
        factor = math.nextafter(factor, 0.0)
    if int(hidden // factor) != dim:
        raise LuthierError(f"no reduction factor gives a bottleneck of {dim} in a base of {hidden}.")
    return int(factor) if factor == int(factor) else factor


def head_of(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The whole head of a base by its names, with the parameters of `layers` as they were trained."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    known = dict(base_parameters(model, remove_duplicate=False))
    for layer in layers:
        if layer.path.startswith(prefix) or layer.kinds != {"param"}:
            raise LuthierError(
                f"{layer.path} was trained whole, and AdapterHub's folders hold whole parameters of a head alone; "
                "export it to peft (--to peft) or merged (--to merged)."
            )
        own = known.get(f"{layer.path}.weight")
        if sum(each is own for each in known.values()) > 1:
            raise LuthierError(f"{layer.path} is tied to another module; export it merged instead (--to merged).")
    trained = {tuner.site.path: tuner for layer in layers for tuner in layer.tuners}
    return {
        path: trained[path].weight(tensor.detach().float()) if path in trained else tensor.detach().float()
        for path, tensor in known.items()
        if not path.startswith(prefix)
    }
