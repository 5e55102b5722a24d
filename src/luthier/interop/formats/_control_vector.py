"""The directions of a control vector, and the edits of the residual stream that equal them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.format import Found
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.interop.formats._gguf.reading import Beside
from luthier.interop.formats._layers import Layer, layers_of
from luthier.methods.forms._reft import stored
from luthier.methods.forms.lobireft import LobiReFT


def directions(held: Beside, model: Any) -> dict[str, Tensor]:
    """Returns `{path of the block: direction [d]}`; raises `LuthierError` for other blocks, widths and models."""
    hint, own = held.values.get("controlvector.model_hint"), getattr(model.config, "model_type", None)
    if hint not in (None, "", own):
        raise LuthierError(f"{held.path} says that it is for a model of type {hint}, and this one is {own}.")
    blocks = {site.layer: site for site in select(model, "stream") if site.layer is not None}
    found: dict[str, Tensor] = {}
    for name, tensor in held.tensors().items():
        head, _, number = name.partition(".")
        site = blocks.get(int(number)) if head == "direction" and number.isdecimal() else None
        if site is None or not site.layer:
            raise LuthierError(f"{held.path} holds {name}; expected direction.1 to direction.{max(blocks, default=0)}.")
        if tensor.shape != (site.d_out,):
            raise LuthierError(
                f"{held.path}: {name} is {tuple(tensor.shape)}, and this base's stream has {site.d_out}."
            )
        if bool(tensor.any()):
            found[site.path] = tensor
    return found


def edits(folder: Path, found: dict[str, Tensor], strength: float) -> list[Found]:
    """The edits Φ(h) = h + Rᵀ b with R = v / |v| and b = strength |v|."""
    if not found or not strength:
        raise LuthierError(f"{folder} adds nothing: every direction, or the strength, is zero.")
    tensors = {}
    for path, v in found.items():
        length = torch.linalg.vector_norm(v.double())
        tensors[path] = {"R": stored((v / length).float()[None]), "b": (strength * length).float()[None]}
    return [Found(LobiReFT(rank=1, positions="all"), "stream", tensors)]


def constants(model: Any, name: str) -> dict[int, Tensor]:
    """Returns `{block: the vector that is added behind it}` of an adapter; raises for one that does anything else."""
    streams = {site.path: site.layer for site in select(model, "stream")}
    found = {streams.get(layer.path) or 0: _constant(layer) for layer in layers_of(model, name)}
    if 0 in found:
        raise LuthierError("a control vector adds behind blocks from the second on; block 0 has no name there.")
    return {block: found[block] for block in sorted(found)}


@torch.no_grad()
def _constant(layer: Layer) -> Tensor:
    """The sum of what the edits at a block add; zeros in gives it out, where it depends on nothing."""
    total: Tensor | None = None
    for tuner in layer.tuners:
        form = tuner.eval_form
        if tuner.site.kind != "stream" or not isinstance(form, LobiReFT) or form.positions != "all":
            raise LuthierError(
                f"{form.name()} at {layer.path} is not a constant that is added for every token (lobireft with "
                "positions all is), and a control vector holds nothing else."
            )
        added = form.post(tuner.params(torch.float32), torch.zeros(tuner.site.d_in), torch.zeros(tuner.site.d_out))
        total = added if total is None else total + added
    assert total is not None  # a layer has a tuner
    return total
