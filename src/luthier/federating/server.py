"""The server: its initial state, the aggregation of its clients' changes, its evaluation, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import set_seed

from luthier import data
from luthier.core.adapters.attach import detach
from luthier.core.contracts.aggregation import Aggregation, shares_of
from luthier.core.contracts.objective import At, labels_of
from luthier.core.errors import LuthierError
from luthier.core.numerics.agreement import agreement, closeness
from luthier.core.numerics.delta import Delta
from luthier.core.numerics.wide import exact
from luthier.core.sites.probe import eval_mode
from luthier.core.storage import store
from luthier.data.labels import labels_in_order
from luthier.federating.change import Change, fill, folded, taken
from luthier.federating.client import at_rank
from luthier.models import Loaded, licence_of
from luthier.training.attachment import attach_all
from luthier.training.prepare import Prepared
from luthier.training.spec import Run

Figures = Callable[[Any, Any], dict[str, float]]
FIGURES: dict[str, Figures] = {
    "classification": agreement,
    "image-classification": agreement,
    "audio-classification": agreement,
    "regression": closeness,
}
"""What is scored beside the loss, of tasks whose answer is one label."""


def initial(run: Run, method: Aggregation, prepared: Prepared, loaded: Loaded, ranks: Sequence[int]) -> Change:
    """What is there before the first round: heads that are new, and the factors that clients go on from."""
    set_seed(run.training.seed)
    attach_all(at_rank(run, max(ranks)), loaded, prepared, Console(quiet=True))
    try:
        found = taken(loaded.model, run.name)
    finally:
        detach(loaded.model, run.name)
    return Change(whole=found.whole) if method.merges else found


def aggregated(method: Aggregation, held: Change, sent: Sequence[Change], rows: Sequence[int]) -> Change:
    """Returns what the server holds after a round; parameters trained whole are averaged, which is exact."""
    shares = shares_of(rows)
    _check_alike(sent)
    low = {path: method.aggregate([change.low[path] for change in sent], shares) for path in sent[0].low}
    if method.merges:
        low = {path: _at_most_full(held.low[path] + new if path in held.low else new) for path, new in low.items()}
    whole = {path: _mean([change.whole[path] for change in sent], shares) for path in sent[0].whole}
    return Change(low, whole)


def _check_alike(sent: Sequence[Change]) -> None:
    """Raises unless all clients changed the same places, of the same sizes."""

    def places(change: Change) -> dict[str, tuple[int, ...]]:
        return {path: low.shape for path, low in change.low.items()} | {
            path: tuple(tensor.shape) for path, tensor in change.whole.items()
        }

    first = places(sent[0])
    for number, change in enumerate(sent):
        if (other := places(change)) != first:
            odd = sorted(set(first.items()) ^ set(other.items()))[0]
            raise LuthierError(f"client {number + 1} of {len(sent)} changed other places than the first: {odd}.")


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([share * tensor for tensor, share in zip(tensors, shares, strict=True)]).sum(0)


def _at_most_full(delta: Delta) -> Delta:
    """The same change with factors that are not larger than it: beyond full rank one of them is the identity."""
    d_out, d_in = delta.shape
    if (delta.rank or 0) <= min(d_out, d_in):
        return delta
    dense = delta.dense()
    eye = torch.eye(min(d_out, d_in), dtype=dense.dtype, device=dense.device)
    return Delta.low_rank(eye, dense) if d_out <= d_in else Delta.low_rank(dense, eye)


def measured(run: Run, prepared: Prepared, loaded: Loaded, held: Change) -> dict[str, float]:
    """`eval_loss` on the rows held out, and accuracy or correlation where the answer is a label; empty without rows."""
    if not prepared.evaluation:
        return {}
    model, size, figures = loaded.model, run.training.batch, FIGURES.get(prepared.task)
    features = labels_in_order(prepared.evaluation, prepared.examples.labels, model.config)
    features = sorted(features, key=lambda feature: -len(feature.get("input_ids", ())))
    collator, sums, outputs = data.collator_for(prepared.task, loaded.processor), [], []
    with folded(model, held), eval_mode(model):
        for first in range(0, len(features), size):
            batch = collator(features[first : first + size])
            batch = {key: value.to(model.device) for key, value in batch.items() if key != "rows"}
            counts = run.objective.token_counts(batch, labels_of(batch, prepared.task == "causal-lm"))
            if figures is None:
                means = run.objective.loss(model, run.objective.inputs(batch, At(0, 1, training=False)))
            else:
                out = model(**batch)
                means = out.loss
                outputs.append(out.logits.float().cpu())
            sums.append(torch.stack([exact(means) * exact(counts), exact(counts)]).cpu())
    total, counts = torch.stack(sums).sum(0)
    loss = float((total / counts.clamp(min=1) * run.objective.part_weights(counts, {})).sum())
    truth = np.array([feature["labels"] for feature in features]) if figures else None
    return {"eval_loss": loss} | (figures(_answers(torch.cat(outputs), figures), truth) if figures else {})


def _answers(logits: Tensor, figures: Figures) -> np.ndarray:
    """The likeliest classes, or the numbers."""
    return (logits[:, 0] if figures is closeness else logits.argmax(-1)).numpy()


def save(
    run: Run, prepared: Prepared, loaded: Loaded, held: Change, folder: Path, told: Mapping[str, Any], card: str
) -> Path:
    """The server's change as an adapter of the base: one pair of factors a layer, and the heads that are new."""
    known = {"task": prepared.task, "labels": prepared.examples.labels, **told}
    attach_all(run, loaded, prepared, Console(quiet=True), known={"ranks": held.ranks})
    try:
        fill(loaded.model, run.name, held)
        return store.save(
            loaded.model,
            folder,
            run.name,
            base=run.model,
            measured=known,
            card=card,
            license=run.license,
            base_license=licence_of(run.model),
        )
    finally:
        detach(loaded.model, run.name)
