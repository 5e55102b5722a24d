"""How the losses of an objective's parts and the loss of held-out rows pull: products of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core.contracts.objective import At, Objective
from luthier.core.numerics.wide import widened
from luthier.core.sites.probe import eval_mode

Batch = Mapping[str, Any]


def slopes_of(
    model: Any,
    objective: Objective,
    batches: Sequence[Batch],
    held: Sequence[Batch],
    at: At,
    counts_of: Callable[[dict[str, Any]], Tensor],
    placed: Callable[[Any], dict[str, Any]],
) -> list[float]:
    """Returns ⟨∇ L_held, ∇ L_k⟩ over the trained tensors for each part k of a step's batches, without dropout.

    L_held is the loss of held-out rows with the parts' own weights, L_k the mean of part k over the step; `placed`
    moves a batch to the model. The random state is left as it was.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    with eval_mode(model), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        wanted = _gradients(model, objective, held, at, counts_of, placed, trained)
        weights = objective.part_weights(_counts(held, counts_of), {}).to(wanted[0][0].dtype)
        weighed = zip(weights, wanted, strict=True)
        pull = [torch.stack(each).sum(0) for each in zip(*([w * g for g in part] for w, part in weighed), strict=True)]
        parts = _gradients(model, objective, batches, at, counts_of, placed, trained)
    return [sum(float((widened(a) * widened(b)).sum()) for a, b in zip(pull, part, strict=True)) for part in parts]


def _counts(batches: Sequence[Batch], counts_of: Callable[[dict[str, Any]], Tensor]) -> Tensor:
    return torch.stack([counts_of(dict(batch)).cpu() for batch in batches]).sum(0)


def _gradients(model, objective, batches, at, counts_of, placed, trained) -> list[list[Tensor]]:  # pyright: ignore
    """The gradient of the mean of each part over batches, [parts][tensors]."""
    totals = _counts(batches, counts_of).clamp(min=1)
    found = [[torch.zeros_like(p) for p in trained] for _ in totals]
    for batch in batches:
        inputs = placed({key: value for key, value in batch.items() if key != "rows"})
        shares = counts_of(inputs).cpu() / totals
        means = objective.loss_and_figures(model, objective.inputs(inputs, at))[0].reshape(-1)
        for part, share in enumerate(shares.tolist()):
            if share and means.requires_grad:
                slopes = torch.autograd.grad(means[part] * share, trained, retain_graph=True, allow_unused=True)
                for own, slope in zip(found[part], slopes, strict=True):
                    own += 0 if slope is None else slope
    return found
