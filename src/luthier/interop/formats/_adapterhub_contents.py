"""What the files of AdapterHub's library are to hold, by what acts on the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features, weight_of
from luthier.interop.formats._adapterhub_bottleneck import bottlenecks
from luthier.interop.formats._adapterhub_layout import NAME, Contents, Layout, Placed, blocks_of, layout_of, placed_in
from luthier.interop.formats._layers import Factoring, Layer, dora_parts, filled, nothing

LORA: Mapping[str, Any] = {
    **{"architecture": "lora", "composition_mode": "add", "dropout": 0.0, "init_weights": "lora", "dtype": None},
    **{"init_weights_seed": None, "use_dora": False, "use_gating": False, "vera_b": None, "vera_d": None},
}
"""What is the same in every configuration that is written."""


def contents(model: nn.Module, layers: Sequence[Layer], factoring: Factoring, *, truncate: bool) -> Contents:
    """Returns the tensors and the configuration of the method; raises `LuthierError` for what has no place."""
    layout = layout_of(model)
    placed = [placed_in(model, layer) for layer in layers]
    write = _lora if truncate else WRITERS.get(_only_form(layers), _lora)
    return write(model, layout, placed, factoring)


def _only_form(layers: Sequence[Layer]) -> str:
    """The name of the form that alone acts, once on each layer and on all tokens; nothing where there are others."""
    tuners = [tuner for layer in layers for tuner in layer.tuners]
    names = {tuner.form.name() for tuner in tuners}
    plain = all(t.form.positions == "all" and not t.component.subtract_start for t in tuners)
    return names.pop() if plain and len(names) == 1 and all(len(layer.tuners) == 1 for layer in layers) else ""


def _lora(model: nn.Module, layout: Layout, placed: Sequence[Placed], factoring: Factoring) -> Contents:
    """Factors with their scale inside B, so that alpha = r."""
    changes = {each.layer.path: factoring(each.layer) for each in placed}
    parts = _fused_parts(layout, placed, lambda path: changes[path][0])
    fused = {each.layer.path for each in placed if layout.fused and each.inside == layout.attention["q"]}
    split = {path: [_third(changes[path], "qkv".index(part)) for part in parts] for path in fused}
    rank = max(len(a) for path in changes for _, a in split.get(path, [changes[path]]))
    tensors = {}
    for path, layer, found in _all_places(model, layout, placed):
        if path in fused:
            thirds = [filled(*pair, rank) for pair in split[path]]
            b, a = torch.cat([b for b, _ in thirds]), torch.cat([a for _, a in thirds])
        else:
            b, a = filled(*(changes[path] if found else nothing(layer)), rank)
        tensors |= {f"{path}.loras.{NAME}.lora_A": a, f"{path}.loras.{NAME}.lora_B": b}
    return tensors, {**LORA, "r": rank, "alpha": rank, **_where(model, layout, placed, parts)}


def _third(change: tuple[Tensor, Tensor], turn: int) -> tuple[Tensor, Tensor]:
    """The factors of one of q, k and v in a fused layer, without the directions that do not reach it."""
    b, a = change
    rows = b[turn * len(b) // 3 : (turn + 1) * len(b) // 3]
    used = rows.any(0)
    return rows[:, used], a[used]


def _dora(model: nn.Module, layout: Layout, placed: Sequence[Placed], factoring: Factoring) -> Contents:
    """With scale 1 and no bias, adapters runs y = m (W + B A) x / ‖W + B A‖, as it should."""
    for each in placed:
        if each.layer.module._parameters.get("bias") is not None or type(each.layer.module).__name__ == "Conv1D":
            raise LuthierError(
                f"{each.layer.path} is adapted by DoRA, and adapters 1.3 would scale its bias as well (or take rows "
                "for columns); give a rank (--rank) for a truncated LoRA, or export it merged (--to merged)."
            )
    held = {each.layer.path: dora_parts(each.layer) for each in placed}
    rank = max(len(a) for _, a, _ in held.values())
    tensors = {}
    for path, layer, found in _all_places(model, layout, placed):
        b, a, m = held[path] if found else (*nothing(layer), vector_norm(weight_of(layer).detach().float(), dim=1))
        b, a = filled(b, a, rank)
        ends = {"lora_A": a, "lora_B": b, "m.weight": m[:, None]}
        tensors |= {f"{path}.loras.{NAME}.{end}": tensor for end, tensor in ends.items()}
    return tensors, {**LORA, "use_dora": True, "r": rank, "alpha": rank, **_where(model, layout, placed, [])}


def _ia3(model: nn.Module, layout: Layout, placed: Sequence[Placed], factoring: Factoring) -> Contents:
    """A vector scales what leaves a layer."""
    for each in placed:
        if each.layer.kinds != {"affine"}:
            raise LuthierError(
                f"{each.layer.path} is scaled where it enters, and AdapterHub's IA3 scales what leaves a layer alone; "
                "export it to peft (--to peft) or merged."
            )
    held = {each.layer.path: each.layer.tuners[0].params(torch.float32)["l"] for each in placed}
    parts = _fused_parts(layout, placed, lambda path: (held[path] - 1)[:, None])
    tensors = {}
    for path, layer, found in _all_places(model, layout, placed):
        vector = held[path] if found else torch.ones((features(layer) or (0, 0))[1])
        if layout.fused and path.endswith(f".{layout.attention['q']}"):
            vector = vector.view(3, -1)[["qkv".index(part) for part in parts]].flatten()
        tensors[f"{path}.loras.{NAME}.lora_B"] = vector[:, None]
    settings = {**LORA, "composition_mode": "scale", "init_weights": "ia3", "r": 1, "alpha": 1}
    return tensors, {**settings, **_where(model, layout, placed, parts)}


def _fused_parts(layout: Layout, placed: Sequence[Placed], rows: Callable[[str], Tensor]) -> list[str]:
    """Which of q, k and v a fused layer changes anywhere."""
    fused = [each.layer.path for each in placed if layout.fused and each.inside == layout.attention["q"]]
    thirds = [[bool(third.any()) for third in rows(path).chunk(3)] for path in fused]
    return [part for turn, part in enumerate("qkv") if any(each[turn] for each in thirds)] or ["q"][: len(fused)]


def _all_places(model: nn.Module, layout: Layout, placed: Sequence[Placed]) -> list[tuple[str, nn.Module, bool]]:
    """(path, module, whether the adapter has it) of every place that the configuration is going to name."""
    known = {*layout.attention.values(), layout.intermediate, layout.output}
    for each in placed:
        if each.inside not in known:
            raise LuthierError(
                f"AdapterHub's adapters has no place for {each.layer.path}; in this base it adapts "
                f"{', '.join(sorted(known))}. Export it merged instead (--to merged)."
            )
    wanted = [name for name in sorted(known) if name in {each.inside for each in placed}]
    blocks, _ = blocks_of(model, placed)
    return [
        (path, model.get_submodule(path), name in held)
        for block, held in blocks.items()
        for name in wanted
        for path in [f"{block}.{name}"]
    ]


def _where(model: nn.Module, layout: Layout, placed: Sequence[Placed], parts: list[str]) -> dict[str, Any]:
    inside = {each.inside for each in placed}
    matrices = parts if layout.fused else [part for part, name in layout.attention.items() if name in inside]
    return {
        "selfattn_lora": bool(matrices),
        "attn_matrices": matrices,
        "intermediate_lora": layout.intermediate in inside,
        "output_lora": layout.output in inside,
        "leave_out": blocks_of(model, placed)[1],
    }


Writer = Callable[[nn.Module, Layout, Sequence[Placed], Factoring], Contents]
WRITERS: Mapping[str, Writer] = {"dora": _dora, "ia3": _ia3, "bottleneck": bottlenecks}
"""By the name of our form, where it alone acts; all else leaves as LoRA if it can."""
