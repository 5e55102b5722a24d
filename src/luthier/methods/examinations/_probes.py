"""Linear probes: whether the state before an answer tells it, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Batch
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.core.sites.structure import decoder_path


def first_states(model: nn.Module, batches: Sequence[Batch]) -> tuple[list[Tensor], Tensor]:
    """Returns ([rows, d] for the input of the first block and the output of each, the class of each row [rows]).

    A row's class is its label, or the first token of its answer; its state is the mean over the tokens of a row to
    classify, else the one from which the first token of the answer is foretold. Float64 on the CPU.
    """
    found: list[list[Tensor]] = []
    classes = []
    device = next(model.parameters()).device
    with eval_mode(model):
        for batch in batches:
            given = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            out: Any = model(**given, output_hidden_states=True)
            states = out.decoder_hidden_states if decoder_path(model) else out.hidden_states
            if not states:
                raise LuthierError(f"{type(model).__name__} shows no hidden states, so its blocks cannot be probed.")
            chosen, label, weights = _wanted(model, given, states[0])
            found.append([_pooled(each, weights)[chosen].double().cpu() for each in states])
            classes.append(label.cpu())
    return [torch.cat(each) for each in zip(*found, strict=True)], torch.cat(classes)


def _wanted(model: nn.Module, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows that have a label, their classes, the weight of every position [rows, positions])."""
    labels: Tensor = batch["labels"]
    if labels.is_floating_point():
        raise LuthierError("the rows carry numbers; probes read classes and texts.")
    if labels.dim() == 1:
        mask = batch.get("attention_mask", torch.ones(states.shape[:2], device=states.device))
        return torch.arange(len(labels), device=labels.device), labels, mask.to(states)
    kept = labels != -100
    if decoder_path(model) is None:  # the first token is foretold by nothing
        kept = kept & (torch.arange(labels.shape[1], device=labels.device) > 0)
    rows = kept.any(1).nonzero()[:, 0]
    first = kept.int().argmax(1)
    place = first if decoder_path(model) else (first - 1).clamp(min=0)
    weights = nn.functional.one_hot(place, states.shape[1]).to(states)
    return rows, labels.gather(1, first[:, None])[rows, 0], weights


def _pooled(states: Tensor, weights: Tensor) -> Tensor:
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def crossed(x: Tensor, labels: Tensor, folds: int, seed: int) -> float:
    """Returns the accuracy of a ridge classifier on states [rows, d], each fold told by the others.

    Targets are one-hot; the penalty is a hundredth of the mean squared length of a centred state.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = [part for part in order.chunk(folds) if len(part)]
    _, classes = labels.unique(return_inverse=True)
    hits = 0.0
    for part in parts:
        rest = torch.cat([other for other in parts if other is not part]) if len(parts) > 1 else part
        hits += float((ridge(x[rest], classes[rest], x[part]) == classes[part]).sum())
    return hits / len(x)


def ridge(x: Tensor, classes: Tensor, asked: Tensor) -> Tensor:
    """Returns the class of each of `asked` by ridge regression on the one-hot classes of x."""
    mean = x.mean(0)
    x, asked = x - mean, asked - mean
    targets = nn.functional.one_hot(classes, int(classes.max()) + 1).to(x)
    middle = targets.mean(0)
    kernel = x @ x.mT
    penalty = 0.01 * kernel.diagonal().mean().clamp(min=1e-12) * torch.eye(len(x), dtype=x.dtype)
    return (asked @ x.mT @ torch.linalg.solve(kernel + penalty, targets - middle) + middle).argmax(-1)
