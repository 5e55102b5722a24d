"""What a model tells of single rows: their losses, and their projected gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier import data
from luthier.core.contracts.example import Examples
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    import numpy as np

    from luthier.core.sites.per_sample import Projection

LONGEST = 512
"""Tokens of a row that are read by default; longer prompts are cut."""


@dataclass
class Reader:
    """A model that reads rows, loaded when it is first asked (see `RowModel` of `core.contracts.selection`)."""

    name: str
    """A folder, a hub id, a .gguf file or a name of the catalogue."""
    task: str = "causal-lm"
    where: str | None = "all-linear"
    """The layers whose weights' gradients are taken; None: the parameters that are trained, an adapter's."""
    batch: int = 4
    max_length: int = LONGEST
    loaded: Any = field(default=None, repr=False)
    """What `luthier.models.load` gives."""

    def gradients(self, examples: Examples, size: int, seed: int) -> np.ndarray:
        """Returns the projected gradient of each row's mean loss, [rows, size], float64 of float32 sums."""
        from luthier.core.sites.per_sample import Projection

        return self.projected(examples, Projection(size, seed))

    def projected(self, examples: Examples, projection: Projection) -> np.ndarray:
        """As `gradients`, by any projection."""
        from luthier.core.sites.per_sample import per_sample
        from luthier.core.sites.select import select

        model = self._base(examples).model
        sites = None if self.where is None else list(select(model, self.where))
        batches, places = self.batches(examples)
        stream = per_sample(model, batches, row_losses, sites=sites, projection=projection)
        return _mean_by_row(stream, places, len(examples))

    def figures(self, examples: Examples) -> Mapping[str, np.ndarray]:
        """Returns `loss`, `error`, `entropy` and `tokens` of each row, [rows] each."""
        from luthier.core.sites.probe import eval_mode

        model = self._base(examples).model
        batches, places = self.batches(examples)
        with eval_mode(model), torch.inference_mode():
            found = _mean_by_row((row_figures(model, batch) for batch in batches), places, len(examples))
        return dict(zip(FIGURES, found.T, strict=True))

    def _base(self, examples: Examples) -> Any:
        from luthier import models

        if self.loaded is None:
            self.loaded = models.load(self.name, task=self.task, labels=examples.labels)
        return self.loaded

    def batches(self, examples: Examples) -> tuple[Iterator[dict[str, Any]], list[list[int]]]:
        """Returns batches of rows of like length, and the places of their rows in `examples`."""
        from luthier import models

        base = self._base(examples)
        features = data.encode_all(
            examples, base.processor, task=self.task, max_length=self.max_length, labels=examples.labels,
            truncate=True, positions=models.positions(base.model),
        )  # fmt: skip
        place = {example.row: i for i, example in enumerate(examples.rows)}
        if len(place) < len(examples):
            raise LuthierError(f"{examples.source} has rows of one number; give each its own.")
        order = sorted(range(len(features)), key=lambda i: data.length_of(features[i]))
        chunks = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        collate, device = data.collator_for(self.task, base.processor), base.model.device

        def stream() -> Iterator[dict[str, Any]]:
            for chunk in chunks:
                batch = collate([{k: v for k, v in features[i].items() if k != "also"} for i in chunk])
                yield {key: value.to(device) for key, value in batch.items() if key != "rows"}

        return stream(), [[place[features[i]["row"]] for i in chunk] for chunk in chunks]


def _mean_by_row(stream: Iterator[Tensor], places: list[list[int]], rows: int) -> np.ndarray:
    """The mean over the pieces of each row (one, unless a long text was cut in several), [rows, numbers]."""
    import numpy as np

    found, count = np.zeros((0, 0)), np.zeros(rows)
    for part, chunk in zip(stream, places, strict=True):
        values = part.float().numpy()
        if not len(found):
            found = np.zeros((rows, values.shape[1]), np.float32)
        np.add.at(found, chunk, values)
        np.add.at(count, chunk, 1)
    return found / count[:, None].clip(min=1)


def row_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Returns each row's own loss, [rows]: the mean over its labels, or that of its class or number."""
    from luthier.methods.log_probs import log_probs, unwrapped

    inner: Any = unwrapped(model)
    if batch["labels"].dim() == 2 and not inner.config.is_encoder_decoder:
        found, count = log_probs(model, batch)
        return -found / count.clamp(min=1)
    logits = model(**batch).logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if batch["labels"].dim() == 2:
        losses = nn.functional.cross_entropy(wide.mT, batch["labels"], reduction="none")
        return losses.sum(1) / batch["labels"].ne(-100).sum(1).clamp(min=1)
    if wide.shape[-1] == 1:
        return (wide[:, 0] - batch["labels"]).square()
    return nn.functional.cross_entropy(wide, batch["labels"], reduction="none")


FIGURES = ("loss", "error", "entropy", "tokens")
"""What `row_figures` gives, in order."""


def row_figures(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Returns the loss, ‖p - y‖, the entropy of p, each a mean over a row's labels, and how many these are, [rows, 4].

    Only the logits that meet a label are held in float32.
    """
    labels = batch["labels"]
    logits = model(**{key: value for key, value in batch.items() if key != "labels" or _needs_labels(model)}).logits
    if labels.dim() == 1:
        logits, labels = logits[:, None], labels[:, None]
    elif not _needs_labels(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.shape[-1] == 1:
        raise LuthierError("rows with a number have no probabilities to score by; choose another selection.")
    wanted = labels.ne(-100)
    log_p = torch.log_softmax(logits[wanted].float(), -1)
    own = log_p.gather(-1, labels[wanted][:, None])[:, 0]
    p = log_p.exp()
    error = (p.square().sum(-1) - 2 * own.exp() + 1).clamp(min=0).sqrt()
    rows = wanted.nonzero()[:, 0]
    count = wanted.sum(1)
    told = torch.stack([-own, error, -(p * log_p).sum(-1)], -1)
    sums = torch.zeros(len(labels), 3, device=told.device).index_add_(0, rows, told)
    return torch.cat([sums / count.clamp(min=1)[:, None], count[:, None].float()], -1).cpu()


def _needs_labels(model: Any) -> bool:
    """Whether the decoder's inputs are made of the labels."""
    return bool(model.config.is_encoder_decoder)
