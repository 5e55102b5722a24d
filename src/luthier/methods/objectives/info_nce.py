"""Contrastive training of sentence embeddings: a text is near the one that belongs to it, and far from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts.objective import ALSO, EMBEDDING, Objective
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InfoNCE(Objective):
    """L = - mean over the anchors of log [e^(s cos(a_i, p_i)) / Σ_j e^(s cos(a_i, c_j))]

    c_j are the positives and negatives of all rows of the batch, so a larger batch is a harder task. A text's vector is
    the mean of its last hidden states; s is the scale, 1 / temperature. Rows are `anchor`, `positive` and, in all rows
    equally many, `negative`.
    """

    paper = (
        "in-batch negatives: Henderson et al. 2017, arXiv 1705.00652; InfoNCE: van den Oord et al. 2018, arXiv "
        "1807.03748; sentence embeddings: Reimers and Gurevych 2019, arXiv 1908.10084"
    )
    reads = ("texts",)
    task = EMBEDDING
    whole = False
    curves = (("accuracy",),)

    scale: float = 20.0
    """What the cosines are multiplied by, s."""

    def check(self) -> None:
        self.above("scale", 0)

    def serves(self, task):
        return task == EMBEDDING

    def rows(self, rows):
        counts = {len(feature[ALSO]) for feature in rows.features}
        if len(counts) > 1:
            raise LuthierError(
                f"rows of {rows.examples.source} have {min(counts) - 1} to {max(counts) - 1} negatives; give all of "
                "them equally many."
            )
        more = {TEXTS: 1 + next(iter(counts))}
        return [feature | more | {ALSO: [each | more for each in feature[ALSO]]} for feature in rows.features]

    def loss(self, model, batch):
        return self.loss_and_figures(model, batch)[0]

    def loss_and_figures(self, model, batch):
        import torch

        of_each = int(batch[TEXTS][0])
        given = {key: value for key, value in batch.items() if key not in (TEXTS, "labels")}
        vectors = mean_pooled(model(**given).last_hidden_state, batch["attention_mask"])
        anchors, others = vectors[0::of_each], [vectors[place::of_each] for place in range(1, of_each)]
        scores = self.scale * anchors @ torch.cat(others).mT
        wanted = torch.arange(len(anchors), device=scores.device)
        loss = torch.nn.functional.cross_entropy(scores, wanted)
        return loss, {"accuracy": scores.argmax(-1).eq(wanted).float()}

    def token_counts(self, batch, labels):
        """[1], the anchors."""
        return (labels.new_zeros(1) + len(labels)) // int(batch[TEXTS][0])


TEXTS = "texts"
"""The feature that holds how many texts a row has; in a batch [texts]."""


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of states [texts, T, d] where the mask [texts, T] is 1, scaled to length 1: [texts, d]."""
    import torch

    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    weights = mask[..., None].to(wide.dtype)
    return torch.nn.functional.normalize((wide * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)
