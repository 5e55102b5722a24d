"""An estimate of the memory that training takes, measured on short rows and scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from luthier.core.contracts.objective import ALSO, REFERENCE, At, Objective
from luthier.data import Collator, sizes_of
from luthier.data.labels import CLASSES
from luthier.training.context import running_norms
from luthier.training.rollouts.features import imagined

SHORT = 64
"""Tokens of the row that is measured."""


@dataclass(frozen=True)
class Memory:
    """The estimated bytes of a training step."""

    weights: int
    """The base and the adapter."""
    optimiser: int
    """Gradients and AdamW's two moments, in the parameters' own format."""
    activations: int
    """What the backward pass keeps of a whole batch of the longest rows, logits included."""

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.weights + self.optimiser + self.activations


def estimate(
    model: nn.Module, features: Sequence[dict[str, Any]], collator: Collator, objective: Objective, batch: int
) -> Memory:
    """Estimates the memory of a step on `batch` rows as long as the longest of `features`."""
    weights = dict(pair for t in [*model.parameters(), *model.buffers()] for pair in storages(t))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    longest = features[int(sizes_of(features).work.argmax())]
    short = shortened(longest)
    if objective.compares:
        short = compared(short)
    rollouts = objective.rollouts(0, 0) if objective.samples else None
    if rollouts is not None:
        scored = bool(objective.reward_specs())
        short, longest = (imagined(each, rollouts, scored) for each in (short, grown(longest, rollouts.max_tokens)))
    one, two = (saved_bytes(model, collator([short] * rows), objective) for rows in (1, 2))
    each, fixed = two - one, max(0, 2 * one - two)  # a weight that a form computes is kept once, whatever the batch
    return Memory(sum(weights.values()), 3 * trained, fixed + each * batch * size(longest) // size(short))


def storages(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yields (address, bytes) of a tensor's storages; a quantised tensor has several."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    else:
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()


def size(feature: dict[str, Any]) -> int:
    """Returns what activations grow with: tokens or samples; 1 where all rows have one size."""
    ids = feature.get("input_ids", feature.get("input_values", ()))
    labels = feature["labels"]
    own = max(len(ids), len(labels) if isinstance(labels, list) else 0, 1)
    return own + sum(map(size, feature.get(ALSO, ())))


def shortened(feature: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of tokens cut to `SHORT`."""
    if "input_ids" not in feature:
        return feature
    tokens = {key for key, value in feature.items() if isinstance(value, list) and key != CLASSES}
    cut = {key: value[-SHORT:] if key in tokens else value for key, value in feature.items()}
    return cut | {ALSO: [shortened(each) for each in feature[ALSO]]} if ALSO in feature else cut


def grown(feature: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Returns a row with so many more tokens, which are none in particular."""
    return feature | {"input_ids": [*feature["input_ids"], *[0] * tokens]}


def compared(feature: dict[str, Any]) -> dict[str, Any]:
    """A row whose reference is known, as it is when a step begins."""
    return {REFERENCE: 0.0} | feature | ({ALSO: [compared(each) for each in feature[ALSO]]} if ALSO in feature else {})


def saved_bytes(model: nn.Module, batch: dict[str, Any], objective: Objective) -> int:
    """Bytes that autograd keeps after one forward pass: each storage once, parameters and buffers left out."""
    known = dict(pair for t in [*model.parameters(), *model.buffers()] for pair in storages(t))
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found.update(pair for pair in storages(tensor) if pair[0] not in known)
        return tensor

    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "rows"}
    training = model.training
    model.train()
    for norm in running_norms(model):
        norm.eval()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        at = At(0, 1, training=True, teacher=lambda given: model(**given).logits.detach())
        loss = objective.loss(model, objective.inputs(inputs, at))
    del loss  # the graph, and with it the storages, lived until here
    model.train(training)
    return sum(found.values())
