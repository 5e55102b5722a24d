"""Low-rank changes of parameters themselves (fused experts, routers) as peft stores them under `target_parameters`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from luthier.core.adapters.lower import refuse_unmergeable
from luthier.core.adapters.tuner import TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import base_parameters, features
from luthier.interop.formats._layers import Factoring, Layer

EXPERTS_SINCE = "0.19.1"
"""The first peft that lays experts out as they are written here; where two widths are the same, nothing else tells."""
INNER = ".base_layer"
"""What peft puts into a name for each wrapper that stands around another one."""


def on_parameters(layer: Layer) -> bool:
    """Whether forms act on the parameters of a module and on nothing else of it."""
    return layer.kinds == {"param"}


def by_matrix(layer: Layer) -> bool:
    """Whether all that acts on a module edits its experts' parameters, one matrix after the other."""
    return all(tuner.form.maps(tuner.site) is not None for tuner in layer.tuners)


def parameters(
    model: nn.Module, layers: Sequence[Layer], factoring: Factoring
) -> tuple[dict[str, Tensor], dict[str, int], dict[str, int]]:
    """Returns (tensors, ranks of linear layers, ranks of parameters) of layers whose parameters are adapted.

    peft wraps a module once for each of its parameters, the first in the model innermost. Of experts, A [E r, d_in]
    holds those of each behind one another, and the columns of B [d_out, r E] go round: e, e + E, … are of expert e.
    The weight of a linear layer is written as that layer's own LoRA, which is the same and which engines know.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    owned: dict[str, int] = {}
    for layer in layers:
        tuners = _in_order(layer)
        for turn, (name, tuner) in enumerate(tuners.items()):
            b, a = _factors(replace(layer, path=f"{layer.path}.{name}", tuners=[tuner]), factoring)
            whole = name == "weight" and features(layer.module) is not None
            (ranks if whole else owned)[layer.path if whole else f"{layer.path}.{name}"] = a.shape[-2]
            path = f"{layer.path}{INNER * (len(tuners) - 1 - turn)}"
            tensors |= {f"{path}.lora_A.weight": _behind(a), f"{path}.lora_B.weight": _around(b)}
    for path in owned:
        _refuse_shared_end(model, path)
    return tensors, ranks, owned


def target_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Returns how `target_parameters` names exactly these: as mlp.experts.down_proj where every block is meant.

    peft takes a second adapter beside a first only if both lists say the same, and people write short names.
    """
    known, wanted = [path for path, _ in base_parameters(model)], set(paths)
    found = set()
    for path in paths:
        short = re.split(r"\.\d+\.", path)[-1]
        found.add(short if {each for each in known if f".{each}".endswith(f".{short}")} <= wanted else path)
    return sorted(found)


def _in_order(layer: Layer) -> dict[str, TunerLayer]:
    """{parameter: what acts on it}, in the module's order."""
    found = {tuner.site.path.rpartition(".")[2]: tuner for tuner in layer.tuners}
    return {name: found[name] for name in layer.module._parameters if name in found}


def _factors(layer: Layer, factoring: Factoring) -> tuple[Tensor, Tensor]:
    """(B [… d_out, r], A [… r, d_in]) of the change of one parameter, with an axis of experts in front where it has
    one; in float32."""
    deltas = _deltas(layer)
    pairs, lost = [], []
    for delta in deltas:
        pairs.append(factoring.fit(layer, delta))
        lost.append(factoring.lost.pop(layer.path, 0.0))
    if max(lost):
        factoring.lost[layer.path] = max(lost)
    rank = max(len(a) for _, a in pairs)
    b = torch.stack([pad(b, (0, rank - b.shape[1])) for b, _ in pairs])
    a = torch.stack([pad(a, (0, 0, 0, rank - len(a))) for _, a in pairs])
    return (b, a) if layer.tuners[0].site.experts else (b[0], a[0])


def _deltas(layer: Layer) -> list[Delta]:
    """The change of each matrix of a parameter, as a map of what enters."""
    refuse_unmergeable(layer.tuners)
    tuner, name = layer.tuners[0], layer.path.rpartition(".")[2]
    stored = layer.module._parameters[name]
    assert stored is not None
    if stored.dim() not in (2, 3) or tuner.site.unfolded:
        raise LuthierError(
            f"{tuner.form.name()} acts on {layer.path}, which is not a matrix; export it merged instead (--to merged)."
        )
    weight = stored.detach().float()
    flipped = weight.mT if tuner.site.transposed else weight
    factors = tuner.factors(torch.float32, flipped)
    if factors is not None:
        b, a = (each if each.dim() == 3 else each[None] for each in factors)
        return [Delta.low_rank(*pair) for pair in zip(b, a, strict=True)]
    change = tuner.weight(weight) - weight
    change = change.mT if tuner.site.transposed else change
    return [Delta.dense_of(each) for each in (change if change.dim() == 3 else change[None])]


def _behind(a: Tensor) -> Tensor:
    return a.flatten(0, 1) if a.dim() == 3 else a


def _around(b: Tensor) -> Tensor:
    return b.permute(1, 2, 0).flatten(1) if b.dim() == 3 else b


def _refuse_shared_end(model: nn.Module, path: str) -> None:
    other = next((each for each, _ in base_parameters(model) if each.endswith(f".{path}")), None)
    if other is not None:
        raise LuthierError(
            f"peft finds {path} by the end of its name, which {other} shares; export it merged instead (--to merged)."
        )
