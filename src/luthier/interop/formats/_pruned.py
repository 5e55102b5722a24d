"""Which heads and channels of a model's blocks are left out, and the model without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import block_lists

COUNTS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
ATTENTION, FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """What a block keeps: groups of heads, and channels; beside it, how many it has."""

    groups: int
    of_groups: int
    channels: int
    of_channels: int


def sizes(model: Any, heads: float, channels: float) -> Sizes:
    """Returns what the blocks of a model keep; raises `LuthierError` for a model that cannot be written smaller."""
    config, blocks = model.config, block_lists(model)
    layers = [layer for path in blocks for layer in model.get_submodule(path)]
    told = all(isinstance(getattr(config, key, None), int) for key in COUNTS)
    names = {name.rpartition(".")[2] for layer in layers for name, _ in layer.named_modules()}
    if len(blocks) != 1 or not told or not names.issuperset({*ATTENTION, *FEED_FORWARD}):
        raise LuthierError(
            f"{type(model).__name__} cannot be written without heads and channels: expected one stack of blocks with "
            f"{', '.join((*ATTENTION, *FEED_FORWARD))}, whose sizes its configuration tells (Llama and its kin)."
        )
    groups, width = config.num_key_value_heads, config.intermediate_size
    wanted = Sizes(_left(groups, heads, "heads"), groups, _left(width, channels, "channels"), width)
    _check_shapes(model, wanted)
    return wanted


def _check_shapes(model: Any, wanted: Sizes) -> None:
    """Raises for a model of which more than these layers goes by the number of heads or channels."""
    own = {key: list(t.shape) for key, t in model.state_dict().items() if ".adapters." not in f".{key}"}
    for key, tensor in empty(model, wanted).state_dict().items():
        shape, name = own.get(key, []), key.split(".")[-2] if "." in key else key
        part = (wanted.channels, wanted.of_channels) if name in FEED_FORWARD else (wanted.groups, wanted.of_groups)
        if name in (*ATTENTION, *FEED_FORWARD):
            dim = 1 if name in ("o_proj", "down_proj") else 0
            shape = [n * part[0] // part[1] if at == dim and len(shape) > dim else n for at, n in enumerate(shape)]
        if list(tensor.shape) != shape:
            raise LuthierError(
                f"{type(model).__name__} cannot be written without heads and channels: {key} would be "
                f"{list(tensor.shape)} there, and more than its slices of heads or channels goes into {own.get(key)}."
            )


def _left(count: int, share: float, what: str) -> int:
    kept = count - round(count * share)
    if kept < 1 or (share and kept == count):
        groups = "groups of heads" if what == "heads" else what
        raise LuthierError(
            f"{what} is {share}, which leaves {kept} of {count} {groups} in each block; expected a share that leaves "
            f"out at least one and not all, {1 / count:.3g} to {(count - 1) / count:.3g}."
        )
    return kept


def pruned(config: Any, tensors: Mapping[str, Tensor], wanted: Sizes) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Returns the tensors that are left, and for each module what went, as a share of the norm of its scores."""
    kept, lost = dict(tensors), {}
    for key in [key for key in tensors if key.endswith(".o_proj.weight")]:
        at = key.removesuffix("o_proj.weight")
        each, head = tensors[key].shape[1] // wanted.of_groups, head_dim(config)
        stay, lost[at.rstrip(".")] = _strongest(head_scores(tensors, at, head, wanted.of_groups), wanted.groups)
        _take(kept, at, ("q_proj",), stay, each, 0)
        _take(kept, at, ("k_proj", "v_proj"), stay, head, 0)
        _take(kept, at, ("o_proj",), stay, each, 1)
    for key in [key for key in tensors if key.endswith(".down_proj.weight")]:
        at = key.removesuffix("down_proj.weight")
        stay, lost[at.rstrip(".")] = _strongest(channel_scores(tensors, at), wanted.channels)
        _take(kept, at, ("gate_proj", "up_proj"), stay, 1, 0)
        _take(kept, at, ("down_proj",), stay, 1, 1)
    return kept, {place: share for place, share in lost.items() if share}


def head_dim(config: Any) -> int:
    """Returns the width of a head, which some configurations leave to be told from the others."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def head_scores(tensors: Mapping[str, Tensor], at: str, head: int, groups: int) -> Tensor:
    """Returns Σ_h ||W_o,h W_v|| of each group of heads, [groups]."""
    value = tensors[f"{at}v_proj.weight"].float().unflatten(0, (groups, head))
    out = tensors[f"{at}o_proj.weight"].float().unflatten(1, (groups, -1, head))
    return torch.einsum("dghe,gei->ghdi", out, value).norm(dim=(-2, -1)).sum(-1)


def channel_scores(tensors: Mapping[str, Tensor], at: str) -> Tensor:
    """Returns ||down_j|| ||up_j|| ||gate_j|| of each channel, [channels]."""
    up, gate = (tensors[f"{at}{name}.weight"].float().norm(dim=1) for name in ("up_proj", "gate_proj"))
    return tensors[f"{at}down_proj.weight"].float().norm(dim=0) * up * gate


def _strongest(scores: Tensor, count: int) -> tuple[Tensor, float]:
    """The places of the largest scores, in order, and the share of the norm that the others have."""
    order = scores.argsort(descending=True, stable=True)
    lost = scores[order[count:]].norm() / scores.norm().clamp(min=1e-30)
    return order[:count].sort().values, float(lost)


def _take(kept: dict[str, Tensor], at: str, names: tuple[str, ...], stay: Tensor, each: int, dim: int) -> None:
    """Keeps the slices `stay`, of `each` rows or columns, of weights, and of biases where rows go."""
    for name in names:
        for part in ("weight", "bias") if dim == 0 else ("weight",):
            if (whole := kept.get(f"{at}{name}.{part}")) is not None:
                taken = whole.unflatten(dim, (-1, each)).index_select(dim, stay.to(whole.device))
                kept[f"{at}{name}.{part}"] = taken.flatten(dim, dim + 1).contiguous()


def smaller(model: Any, tensors: Mapping[str, Tensor], wanted: Sizes) -> Any:
    """Returns a model of the same class with these tensors."""
    made = empty(model, wanted)
    made.load_state_dict(dict(tensors), strict=True, assign=True)
    made.generation_config = model.generation_config
    return made


def empty(model: Any, wanted: Sizes) -> Any:
    """Returns a model of the same class without values, of these sizes."""
    config = copy.deepcopy(model.config)
    config.head_dim = head_dim(config)
    config.num_attention_heads = config.num_attention_heads * wanted.groups // wanted.of_groups
    config.num_key_value_heads, config.intermediate_size = wanted.groups, wanted.channels
    cls = vars(type(model)).get("_luthier_base", type(model))
    with torch.device("meta"):
        return cls(config)
