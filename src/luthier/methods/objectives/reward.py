"""A reward model: one number for a conversation, higher for the answer that was chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.contracts.objective import ALSO
from luthier.core.errors import LuthierError
from luthier.methods.objectives._pairs import Pairs, Sides, arguments, figures, preferred

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = "margin"
"""Column and feature: by how much the chosen answer is better."""


@dataclass(frozen=True)
class Reward(Pairs):
    """L = mean over the pairs of - log σ(r(x, y_w) - r(x, y_l) - m) + c (r(x, y_w) + r(x, y_l))²

    r is a new head of one output on the last token of the whole conversation, trained as part of the adapter. m is the
    column `margin`, 0 where the rows have none (Touvron et al. 2023); c keeps the rewards around 0 (Eisenstein et al.
    2023). The whole conversation is what is read, so a form with positions counts its answer as well.
    """

    paper = (
        "Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155; margin: Touvron et al. 2023, arXiv 2307.09288; "
        "centring: Eisenstein et al. 2023, arXiv 2312.09244"
    )
    columns = (MARGIN,)
    task = "reward"
    sees = False
    curves = (("reward_chosen", "reward_rejected", "margin"), ("accuracy",))

    center: float = 0.0
    """c, how strongly the sum of both rewards is pulled to 0 (0: not at all)."""

    def check(self) -> None:
        self.within("center", 0)

    def rows(self, rows):
        told = {e.row: e.meta[MARGIN] for e in rows.examples.rows if e.meta.get(MARGIN) is not None}
        if not told:
            return rows.features
        bad = [f["row"] for f in rows.features if not number(told.get(f["row"]))]
        if bad:
            raise LuthierError(
                f"{len(bad)} rows of {rows.examples.source} have no finite number as {MARGIN!r} (the first: {bad[0]}), "
                "and others have one; give every row one, or take the column out."
            )
        return [
            f | {MARGIN: float(told[f["row"]]), ALSO: [each | {MARGIN: float(told[f["row"]])} for each in f[ALSO]]}
            for f in rows.features
        ]

    def loss_and_figures(self, model, batch):
        import torch

        logits = model(**arguments(batch, "labels", MARGIN)).logits[:, 0]
        rewards = Sides.of(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        margin = batch[MARGIN][0::2] if MARGIN in batch else None
        return self.of(rewards, margin).mean(), figures(rewards)

    def of(self, rewards: Sides, margin: Tensor | None) -> Tensor:
        """Returns the loss of each pair."""
        gap = rewards.margin if margin is None else rewards.margin - margin
        losses = preferred(gap)
        return losses + self.center * (rewards.chosen + rewards.rejected).square() if self.center else losses


def number(value: object) -> bool:
    """Whether a cell of the column is a number that can be a margin."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
