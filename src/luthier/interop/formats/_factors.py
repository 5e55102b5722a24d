"""Low-rank changes of layers, tables and experts, read from whatever file, as forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import nearest, renamed
from luthier.core.sites.structure import base_parameters, features, raw_parameter, unfolded_features
from luthier.interop.formats._peft_beside import low_rank
from luthier.methods.forms.bitfit import BitFit
from luthier.methods.forms.lora import LoRA


@dataclass(frozen=True, eq=False)
class Pair:
    """The change scale · B A of one weight; B [d_out, r], A [r, d_in]. Of experts there is one more axis in front.

    Of a table, A is looked up: [r, rows], and B [width, r].
    """

    B: Tensor
    A: Tensor
    scale: float = 1.0


def own_paths(folder: Path, paths: list[str], model: nn.Module) -> dict[str, str]:
    """`{path in the file: the model's own}` of modules and parameters; raises for the first that the model lacks."""
    found, lost = renamed(paths, model)
    if lost:
        raise LuthierError(
            f"{folder} holds tensors of {lost[0]}, which is neither a layer nor a parameter of this "
            f"{type(model).__name__}{nearest(lost[0], model)} It was fitted on another base, or its names are of a "
            "layout that is not known here."
        )
    return found


def check_pair(folder: Path, path: str, pair: Pair) -> None:
    """Raises for factors that are no matrices (or stacks of them), or that do not fit each other."""
    if not pair.A.dim() == pair.B.dim() in (2, 3) or pair.A.shape[-2] != pair.B.shape[-1] or not pair.A.shape[-2]:
        shapes = f"{tuple(pair.A.shape)} and {tuple(pair.B.shape)}"
        raise LuthierError(f"{folder}: the factors of {path} are {shapes}, which do not fit each other.")


def lora_of(folder: Path, pairs: Mapping[str, Pair], model: nn.Module, dropout: float = 0.0) -> list[Found]:
    """LoRA on linear layers, tables and parameters, by the model's own paths.

    A table that is tied to the head is changed where it is looked up alone; whoever changes both names both.
    """
    known = {name for name, _ in base_parameters(model, remove_duplicate=False)}
    layers: dict[str, Pair] = {}
    weights: dict[str, Pair] = {}
    convolutions: dict[str, Pair] = {}
    found = []
    for path, pair in pairs.items():
        module = None if path in known else model.get_submodule(path)
        if module is not None and unfolded_features(module):
            convolutions[f"{path}.weight"] = _unfolded(folder, path, pair)
            continue
        check_pair(folder, path, pair)
        if isinstance(module, nn.Embedding):
            _check_table(folder, path, pair, module)
            found.append(low_rank(folder, model, path, pair.scale * pair.A.mT, pair.B.mT))
        elif module is None or features(module):
            layers[path] = pair
        elif f"{path}.weight" in known:
            weights[f"{path}.weight"] = pair  # a router, which transformers 5 keeps as a bare parameter
        else:
            raise LuthierError(
                f"{folder} changes {path}, which is not a layer of a weight of its own ({type(module).__name__})."
            )
    return [
        *_grouped(layers, "affine", dropout),
        *_grouped(weights, "param", 0.0),
        *_grouped(convolutions, "conv", 0.0),
        *found,
    ]


def _unfolded(folder: Path, path: str, pair: Pair) -> Pair:
    """The factors of a convolution, B [d_out, r] and A [r, channels · kernel]: the second of the two is 1 x 1."""
    if pair.A.dim() < 3 or pair.A.dim() != pair.B.dim() or any(size != 1 for size in pair.B.shape[2:]):
        raise LuthierError(
            f"{folder}: the factors of the convolution {path} are {tuple(pair.A.shape)} and {tuple(pair.B.shape)}; "
            "expected one of its own kernel and one of 1 x 1."
        )
    flat = Pair(pair.B.flatten(1), pair.A.flatten(1), pair.scale)
    check_pair(folder, path, flat)
    return flat


def _check_table(folder: Path, path: str, pair: Pair, table: nn.Embedding) -> None:
    have = (pair.A.shape[-1], pair.B.shape[-2])
    if pair.A.dim() != 2 or have != tuple(table.weight.shape):
        raise LuthierError(f"{folder} changes {path} as if it were {have}; this base has {tuple(table.weight.shape)}.")


def _grouped(pairs: Mapping[str, Pair], kind: str, dropout: float) -> list[Found]:
    """One form for all of a kind: the rank and scale of most, where others differ in rank or have theirs inside B."""
    if not pairs:
        return []
    ranks = {path: pair.A.shape[-2] for path, pair in pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    scale = Counter(pair.scale for pair in pairs.values()).most_common(1)[0][0] or 1.0
    form = LoRA(rank=rank, alpha=rank * scale, dropout=dropout)
    tensors = {
        path: {"A": pair.A.contiguous(), "B": (pair.B * (pair.scale / form.scale)).contiguous()}
        for path, pair in pairs.items()
    }
    return [Found(form, kind, tensors, ranks if set(ranks.values()) != {rank} else {})]


def scaled_biases(model: nn.Module, gains: Mapping[str, Tensor]) -> list[Found]:
    """What scales the output of a layer by rows and its bias with it: the change (gain - 1) b of each bias."""
    found = {}
    for path, gain in gains.items():
        if model.get_submodule(path)._parameters.get("bias") is not None:
            bias = raw_parameter(model, f"{path}.bias").detach().float()
            found[f"{path}.bias"] = {"delta": (gain - 1) * bias}
    return [Found(BitFit(), "param", found)] if found else []


def gate_and_up(folder: Path, path: str, gate: Pair | None, up: Pair | None) -> Pair:
    """The change of gates over up-projections, [..., 2 d, d_in], from those of either half; one that is not there is 0.

    Ranks add up: B = [[B_g, 0], [0, B_u]], A = [A_g; A_u].
    """
    halves = [pair for pair in (gate, up) if pair is not None]
    for pair in halves:
        check_pair(folder, path, pair)
    if len({(pair.B.shape[:-1], pair.A.shape[-1]) for pair in halves}) != 1:
        raise LuthierError(f"{folder}: the changes of gates and up-projections at {path} differ in shape.")
    rows, width = halves[0].B.shape[-2], sum(pair.A.shape[-2] for pair in halves)
    left = torch.zeros(*halves[0].B.shape[:-2], 2 * rows, width)
    start = 0
    for row, pair in ((0, gate), (rows, up)):
        if pair is not None:
            end = start + pair.A.shape[-2]
            left[..., row : row + rows, start:end] = pair.scale * pair.B
            start = end
    return Pair(left, torch.cat([pair.A for pair in halves], -2))
