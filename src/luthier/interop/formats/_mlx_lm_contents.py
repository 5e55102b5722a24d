"""What mlx-lm's files are to hold, and how it calls the layers of a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import base_parameters, block_lists
from luthier.interop.formats._layers import Factoring, Layer, dora_parts, is_dora, trained_whole

TYPES: Mapping[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "qwen3_moe"), ()),
    "gpt2": (("transformer.", "model."),),
    "mixtral": ((".mlp.", ".block_sparse_moe."),),
}
"""The names, {model type: (part of a name in transformers, the same in mlx-lm)}, where layouts were compared."""


def names_of(model: nn.Module) -> Callable[[str], str]:
    """How mlx-lm calls the paths of a base; raises `LuthierError` for one whose layout was not compared."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in TYPES or not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise LuthierError(
            f"{type(model).__name__} ({kind}) is none of the models whose layout in mlx-lm was compared: language "
            f"models of type {', '.join(TYPES)}. Export it merged (--to merged) and convert that (mlx_lm.convert)."
        )

    def name(path: str) -> str:
        for own, other in TYPES[kind]:
            path = path.replace(own, other)
        return path

    return name


def contents(
    model: nn.Module, layers: Sequence[Layer], factoring: Factoring, *, truncate: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns (tensors by their names in mlx-lm, configuration)."""
    name = names_of(model)
    blocks = max((len(each) for each in block_lists(model).values()), default=0)
    if all(trained_whole(layer) and layer.kinds == {"param"} for layer in layers):
        config = {"fine_tune_type": "full", "num_layers": blocks, "lora_parameters": None}
        return {name(path): tensor for layer in layers for path, tensor in _weights(layer)}, config
    for layer in layers:
        _refuse(model, layer)
    dora = not truncate and all(is_dora(layer) for layer in layers)
    found = {layer.path: dora_parts(layer) if dora else (*factoring(layer), None) for layer in layers}
    rank = max(len(a) for _, a, _ in found.values())
    tensors = {}
    for path, (b, a, m) in found.items():
        tensors[f"{name(path)}.lora_a"] = pad(a, (0, 0, 0, rank - len(a))).mT
        tensors[f"{name(path)}.lora_b"] = pad(b, (0, rank - b.shape[1])).mT
        tensors |= {f"{name(path)}.m": m} if m is not None else {}
    settings = {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(map(name, found))}
    return tensors, {"fine_tune_type": "dora" if dora else "lora", "num_layers": blocks, "lora_parameters": settings}


def _refuse(model: nn.Module, layer: Layer) -> None:
    if trained_whole(layer):
        raise LuthierError(
            f"{layer.path} was trained whole beside an adapter, and mlx-lm's folders hold one or the other; export it "
            "merged instead (--to merged)."
        )
    known = dict(base_parameters(model, remove_duplicate=False))
    own = known.get(f"{layer.path}.weight")
    if own is not None and sum(each is own for each in known.values()) > 1:
        raise LuthierError(
            f"{layer.path} is tied to another module; mlx-lm changes what both read, and this adapter one of them. "
            "Export it merged instead (--to merged)."
        )


def _weights(layer: Layer) -> list[tuple[str, Tensor]]:
    """The parameters of a layer that were trained whole, as mlx-lm stores them."""
    found = []
    for tuner in layer.tuners:
        key = tuner.site.path.removeprefix(f"{layer.path}.")
        weight = tuner.weight(layer.module.get_parameter(key).detach().float())
        turned = key == "weight" and type(layer.module).__name__ == "Conv1D"
        found.append((tuner.site.path, weight.mT if turned else weight))
    return found
