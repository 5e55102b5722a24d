"""Questions whose answer is yes or no: how much surer a model is of yes where that is right, by description."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import eval_mode
from luthier.methods.rewrites.yes_no import NO, YES

if TYPE_CHECKING:
    import numpy as np

TASKS = ("causal-lm", "classification")
TASK = "task"
"""The column that holds the description, which the question asks for."""


def check_questions(examples: Examples) -> None:
    """Raises for rows that have another answer than yes or no, and for descriptions with one answer alone."""
    if examples.task not in TASKS or data.kind_of(examples.layout) != "answers" or examples.layout == "text":
        raise LuthierError(
            f"{examples.source} has {examples.layout} rows for {examples.task}; questions (yes_no) are prompts whose "
            "answer is yes or no, or texts of the classes yes and no."
        )
    found: dict[str, set[bool]] = {}
    for row in examples.rows:
        found.setdefault(description(row), set()).add(truth(row, examples.source))
    lonely = [each for each, answers in found.items() if len(answers) < 2]
    if lonely:
        raise LuthierError(
            f"{len(lonely)} of {len(found)} descriptions of {examples.source} have one answer in all rows, such as "
            f"{lonely[0]!r}: the area under the ROC curve needs both. Give more rows, or leave these out."
        )


def description(row: Example) -> str:
    """Returns the description that a row asks for; empty where the rows have none."""
    return str(row.meta.get(TASK, ""))


def truth(row: Example, source: str) -> bool:
    """Returns whether the answer of a row is yes."""
    said = str(row.label if row.messages is None else row.answer).strip().casefold()
    if said not in (YES, NO):
        raise LuthierError(f"{source}, row {row.row}: the answer is {said[:40]!r}; expected yes or no.")
    return said == YES


def sureness(
    model: Any,
    processor: Any,
    examples: Examples,
    *,
    batch: int,
    max_length: int | None = None,
    done: Callable[[int], Any] = int,
) -> np.ndarray:
    """Returns log p(yes) - log p(no) of each row of a language model, [rows] in float64."""
    import numpy as np

    from luthier.methods.log_probs import log_probs

    both = []
    for answer in (YES, NO):
        told = examples.keep([_answered(row, answer) for row in examples.rows])
        settings: dict[str, Any] = {"max_length": max_length, "positions": models.positions(model), "pictures": True}
        features = data.encode_all(told, processor, task="causal-lm", **settings)
        order = sorted(range(len(features)), key=lambda i: data.length_of(features[i]), reverse=True)
        collator, found = data.collator_for("causal-lm", processor), np.zeros(len(features))
        with eval_mode(model):
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                inputs = collator([features[i] for i in chosen])
                inputs.pop("rows")
                sums, _ = log_probs(model, {key: value.to(model.device) for key, value in inputs.items()})
                found[chosen] = sums.double().cpu().numpy()
                done(len(chosen) if answer == NO else 0)
        both.append(found)
    return both[0] - both[1]


def _answered(row: Example, answer: str) -> Example:
    import dataclasses

    turns = row.messages or []
    place = data.last_answer(turns)
    said = [*turns[:place], {**turns[place], "content": answer}, *turns[place + 1 :]]
    return dataclasses.replace(row, messages=said, answer=answer)


def by_description(found: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns `auc`, the mean over descriptions of the area under the ROC curve, and `accuracy` at one half.

    `found` [rows, 2] holds how much surer the model is of yes, and the number of the description; `right` [rows] is 1
    where yes is right. A description with one answer alone, as in a bootstrap sample, is left out; NaN without any.
    """
    areas = list(areas_of(found[:, 0], right == 1, found[:, 1]).values())
    told = float(sum(areas) / len(areas)) if areas else float("nan")
    return {"auc": told, "accuracy": float(((found[:, 0] > 0) == (right == 1)).mean())}


def areas_of(sure: np.ndarray, right: np.ndarray, group: np.ndarray) -> dict[float, float]:
    """Returns P(s of a right row > s of another) + ½ P(equal) in each group, by Mann and Whitney's rank sums.

    All are [rows]; `right` is bool. A group whose rows are all right, or none, is left out.
    """
    import numpy as np

    order = np.lexsort((sure, group))
    s, g, yes = sure[order], group[order], right[order]
    begins = np.r_[True, g[1:] != g[:-1]]
    place, at = begins.cumsum() - 1, begins.nonzero()[0]
    tied = (begins | np.r_[True, s[1:] != s[:-1]]).cumsum() - 1
    ranks = (np.bincount(tied, np.arange(len(s))) / np.bincount(tied))[tied] - at[place]
    ones = np.bincount(place, yes)
    zeros = np.bincount(place) - ones
    above = np.bincount(place, yes * ranks) - ones * (ones - 1) / 2
    both = (ones > 0) & (zeros > 0)
    return dict(zip(g[at][both].tolist(), (above[both] / (ones * zeros)[both]).tolist(), strict=True))
