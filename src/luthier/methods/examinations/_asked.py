"""What examinations that ask a model share: prompts, answers, their scores, and intervals over rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from luthier.core.contracts.examination import Pair
from luthier.core.contracts.example import Example, Scorer, last_answer
from luthier.core.errors import LuthierError
from luthier.core.numerics.resampling import resampled, unseen
from luthier.data.score import judge, scorer_for

CHUNK = 4_000_000
"""Drawn rows held at a time."""
ROUNDING = 1e-12
"""How far figures of equal rows may lie apart."""
SURE = re.compile(r"\b(yes|no)\b")


@dataclass(frozen=True)
class Asked:
    """Rows that a model is asked about: prompts, right answers, and how answers are scored."""

    rows: Sequence[Example]
    scorer: Scorer
    names: Sequence[str]
    """The data set of each row."""

    def prompts(self) -> list[Example]:
        """Returns the rows up to where an answer is to be written."""
        return [replace(row, messages=(row.messages or [])[: last_answer(row.messages or [])]) for row in self.rows]

    def scores(self, answers: Sequence[str], shift: int = 0) -> Tensor:
        """Returns the score of each answer, [rows]; with `shift`, against the right answer of that many rows on."""
        wanted = [self.rows[(n + shift) % len(self.rows)] for n in range(len(self.rows))]
        found = [judge(self.scorer, answer, row)[0] for answer, row in zip(answers, wanted, strict=True)]
        return torch.tensor(found, dtype=torch.double)


def contained(said: str, wanted: str) -> bool:
    """Returns whether an answer contains the wanted one as words, whatever the case; of yes and no the first counts."""
    found, answer = (" ".join(text.casefold().split()) for text in (said, wanted))
    if not answer:
        return not found
    if SURE.fullmatch(answer):
        first = SURE.search(found)
        return first is not None and first[0] == answer
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", found) is not None


CONTAINED = Scorer("contained", lambda said, row: float(contained(said, str(row.answer))))


def asked(pair: Pair, name: str) -> Asked:
    """Returns all rows of a pair; raises `LuthierError` where there are none, or none has an answer to score with."""
    sets = [(key, each) for key, each in pair.examples.items() if len(each)]
    if not sets:
        raise LuthierError(f"{name} has the model write answers; give rows of prompts with their answers.")
    scorer = scorer_for(sets[0][1])
    rows = [row for _, each in sets for row in each.rows]
    if scorer is None or any(row.answer is None or not row.messages for row in rows):
        raise LuthierError(f"{name} scores written answers, and some rows have none to compare with.")
    return Asked(rows, scorer, [key for key, each in sets for _ in each.rows])


def shown(pair: Pair, text: str, model: nn.Module, prompts: Sequence[Example], longest: int, size: int = 32):
    """Returns the answers of a model to prompts, in order; progress is shown by parts of them."""
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [answer for part in pair.watch(text, parts) for answer in pair.write(model, part, longest)]


def interval(
    figure: Callable[[Tensor], Tensor], columns: Tensor, resamples: int, seed: int, outcomes: Tensor | None = None
) -> tuple[float, float, float]:
    """Returns (value, low, high): a figure of the column means with its 95% percentile bootstrap over rows.

    `columns` is [rows, columns]; `figure` takes means [..., columns] and gives [...]. Rows that all say the same of the
    figure give it no spread when they are redrawn; then the bounds are what it would be if a share of `unseen` rows
    were of any of the `outcomes` [m, columns], by default all rows of 0 and 1.
    """
    value = float(figure(columns.mean(0)))
    held = max(1, CHUNK // columns.shape[1])
    drawn = torch.cat([figure(columns[rows].mean(1)) for rows in resampled(len(columns), resamples, seed, held)])
    if float(drawn.max() - drawn.min()) > ROUNDING:
        low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=columns.dtype)).tolist()
        return value, low, high
    if outcomes is None:
        outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * columns.shape[1])
    share, others = unseen(len(columns)), outcomes.to(columns).reshape(-1, columns.shape[1])
    found = figure((1 - share) * columns.mean(0) + share * others)
    return value, min(value, float(found.min())), max(value, float(found.max()))
