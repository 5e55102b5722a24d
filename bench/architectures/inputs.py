"""A batch for any model, with labels where its family has some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.sites.probe import dummy_inputs

LABELS = {
    "causal-lm": lambda inputs, rows: inputs["input_ids"],
    "masked-lm": lambda inputs, rows: inputs["input_ids"],
    "seq2seq": lambda inputs, rows: inputs["decoder_input_ids"],
    "speech-seq2seq": lambda inputs, rows: inputs["decoder_input_ids"],
    "ctc": lambda inputs, rows: torch.tensor([[3, 4]] * rows),
    "sequence-classification": lambda inputs, rows: torch.arange(rows) % 2,
    "image-classification": lambda inputs, rows: torch.arange(rows) % 2,
    "audio-classification": lambda inputs, rows: torch.arange(rows) % 2,
}
"""The labels of a family's rows."""


def batch(model: nn.Module, family: str) -> dict[str, Any]:
    """The first of these that the model runs on, gradients included: two rows with labels, two rows, one with labels,
    one."""
    one = dummy_inputs(model)
    two = {key: _doubled(value) for key, value in one.items()}
    tries = [(two, 2, True), (two, 2, False), (one, 1, True), (one, 1, False)]
    error: Exception | None = None
    for given, rows, labelled in tries:
        try:
            found = {**given, **({"labels": LABELS[family](given, rows)} if labelled else {})}
            with torch.no_grad():
                made = model(**found)
            if not labelled or bool(torch.isfinite(made["loss"])):
                return found
        except Exception as raised:
            error = error or raised
    raise error or RuntimeError("no finite loss")


def _doubled(value: Any) -> Any:
    """Two rows, the second one another."""
    if not isinstance(value, Tensor):
        return value
    other = value.flip(-1) if value.dim() > 1 else value
    return torch.cat([value, other])
