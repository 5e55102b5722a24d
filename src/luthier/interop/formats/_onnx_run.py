"""A graph run by onnxruntime and compared with its model: padded rows, other lengths, prompts and single tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.adapters.swap import generative
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.interop.formats._onnx import positions

LENGTHS = (7, 1, 1, 4)
"""Tokens of each pass through the graph: a prompt without a cache, single tokens, and several at once."""
EXACT = 1e-4
"""Largest difference, of the largest output, that rounding in float32 may make."""


def difference(model: Any, file: Path, processor: Any, *, exact: bool) -> float:
    """Returns the largest difference of the outputs, relative to the largest; raises where `exact` and it is no
    rounding."""
    import onnxruntime  # type: ignore[import-not-found]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    size = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(2 * sum(LENGTHS)).view(2, -1) * 5 + 1) % size
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with eval_mode(model):
        given = {"attention_mask": mask} | ({"position_ids": positions(mask)} if "position_ids" in names else {})
        wanted = model(input_ids=ids, **given)[0]
    found = _written(session, ids, mask) if generative(model) else _read(session, names, ids, mask)
    real = mask.bool() if wanted.dim() == 3 else torch.ones(len(ids), dtype=torch.bool)
    lost = float((found - wanted)[real].abs().max() / wanted[real].abs().max().clamp(min=1e-30))
    if exact and not lost < EXACT:
        raise LuthierError(
            f"{type(model).__name__} as an ONNX graph answers otherwise than the model ({lost:.1e} of the largest "
            "output), so it is not written. Export it merged (--to merged), and use the model."
        )
    return lost


def _read(session: Any, names: list[str], ids: Tensor, mask: Tensor) -> Tensor:
    held = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return torch.from_numpy(session.run(None, {name: held[name].numpy() for name in names})[0])


def _empty(axes: list[int | str], rows: int) -> Any:
    """A cache of no tokens, by what the graph says of its axes, as transformers.js makes it."""
    return torch.zeros(
        [axis if isinstance(axis, int) else rows if axis == "batch_size" else 0 for axis in axes]
    ).numpy()


def _written(session: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The logits of all tokens, pass by pass, each behind the cache that the one before gave."""
    names, outputs = ([each.name for each in told] for told in (session.get_inputs(), session.get_outputs()))
    held = {each.name: _empty(each.shape, len(ids)) for each in session.get_inputs() if "past" in each.name}
    where, parts, start = positions(mask), [], 0
    for length in LENGTHS:
        end = start + length
        new = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": where[:, start:end]}
        feed = {name: new[name].numpy() for name in names if name in new} | held
        given = dict(zip(outputs, session.run(None, feed), strict=True))
        held = {name: given[name.replace("past_key_values", "present")] for name in held}
        parts.append(torch.from_numpy(given["logits"]))
        start = end
    return torch.cat(parts, 1)
