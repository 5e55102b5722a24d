"""MORepair: the repair, and the repair with its reasons, learned together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.core.contracts.objective import ALSO, PART, Batch, Objective
from luthier.core.errors import LuthierError
from luthier.methods.noise import noisy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.data import Example

RATIONALE = "rationale"


@dataclass(frozen=True)
class MORepair(Objective):
    """L = (L(fix) + β L(fix + rationale)) / (1 + β)

    Each row is learned twice in one step: with its answer, and with its answer followed by the column `rationale`
    (an empty line between them). Both are means over their answers' tokens, the end included; prompts, which the
    authors' code learns as well, are not in the loss. Noise is NEFTune's: uniform in ±noise/√(L d) on the embeddings
    of a row of L tokens, in training only.
    """

    paper = "Yang et al. 2025, arXiv 2404.12636; NEFTune: Jain et al. 2023, arXiv 2310.05914"
    neutral: ClassVar = {"beta": 0.0, "noise": 0.0}
    columns = (RATIONALE,)

    beta: float = 1.0
    """Weight of the answer with its rationale (0: it is not learned)."""
    noise: float = 5.0
    """NEFTune's α, the size of the noise (0: none)."""

    def check(self) -> None:
        for name in ("beta", "noise"):
            self.within(name, 0)

    def rows(self, rows):
        if not self.beta:
            return rows.features
        kept = {feature["row"] for feature in rows.features}
        examples = [example for example in rows.examples.rows if example.row in kept]
        bare = [example.row for example in examples if not str(example.meta.get(RATIONALE) or "").strip()]
        if bare:
            raise LuthierError(
                f"{len(bare)} rows of {rows.examples.source} have no {RATIONALE!r} (the first: {bare[0]}); morepair "
                "learns one with each answer. Add the column, or set beta to 0."
            )
        second = {f["row"]: f for f in rows.encode(rows.examples.keep(list(map(explained, examples))))}
        return [
            feature | {PART: [1, 0], ALSO: [second[feature["row"]] | {PART: [0, 1]}]}
            for feature in rows.features
            if feature["row"] in second
        ]

    def loss(self, model, batch):
        import torch

        if PART not in batch:
            return self._mean(model, batch)
        rest = {key: value for key, value in batch.items() if key != PART}
        chosen = batch[PART].bool().unbind(1)
        return torch.stack([self._mean(model, {k: v[rows] for k, v in rest.items()}) for rows in chosen])

    def part_weights(self, counts, state):
        import torch

        parts = torch.tensor([1.0, self.beta], device=counts.device)[: len(counts)]
        return parts / parts.sum()

    def _mean(self, model: nn.Module, batch: Batch) -> Tensor:
        from luthier.methods.objectives._cross_entropy import causal_loss

        with noisy(model, self.noise, batch):
            return causal_loss(model, batch)


def explained(example: Example) -> Example:
    """Returns the same row with its rationale behind the answer."""
    from luthier.data import last_answer

    turns = example.messages
    if turns is None:
        raise LuthierError(f"row {example.row} is not a prompt with an answer, which morepair needs for its rationale.")
    place = last_answer(turns)
    answer = f"{turns[place].get('content') or ''}\n\n{example.meta[RATIONALE]}"
    return dataclasses.replace(
        example, messages=[*turns[:place], {**turns[place], "content": answer}, *turns[place + 1 :]]
    )
