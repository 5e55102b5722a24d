"""How well a model foretells texts: the loss of their tokens, and the perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.sites.probe import eval_mode

if TYPE_CHECKING:
    import numpy as np

PIECE = 1024
"""The most tokens of a piece; a longer text is read in several."""


def foretold(
    model: Any,
    processor: Any,
    texts: data.Examples,
    *,
    batch: int,
    max_length: int | None = None,
    done: Callable[[int], Any] = int,
) -> np.ndarray:
    """Returns (Σ log p of the tokens, how many these are) of each text, [texts, 2] in float64.

    A longer text than `max_length` (1,024) tokens is read in pieces; the first token of a piece is not foretold.
    """
    import numpy as np

    from luthier.methods.log_probs import log_probs

    longest = min(each for each in (max_length or PIECE, models.positions(model)) if each is not None)
    features = data.encode_all(texts, processor, task="causal-lm", max_length=longest, truncate=True)
    place = {example.row: index for index, example in enumerate(texts.rows)}
    order = sorted(range(len(features)), key=lambda i: data.length_of(features[i]), reverse=True)
    collator = data.collator_for("causal-lm", processor)
    found = np.zeros((len(texts), 2))
    with eval_mode(model):
        for start in range(0, len(order), batch):
            inputs = collator([features[i] for i in order[start : start + batch]])
            rows = [place[row] for row in inputs.pop("rows")]
            sums, counts = log_probs(model, {key: value.to(model.device) for key, value in inputs.items()})
            np.add.at(found, rows, np.stack([sums.double().cpu().numpy(), counts.cpu().numpy()], -1))
            done(len(rows))
    return found


def figures(found: np.ndarray) -> dict[str, float]:
    """Returns `loss`, the mean of all tokens, and `perplexity`, its exponential."""
    loss = float(-found[:, 0].sum() / found[:, 1].sum())
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def listed(found: np.ndarray, rows: list[int]) -> list[dict[str, Any]]:
    """Returns `{"row", "loss", "tokens"}` of each text."""
    return [
        {"row": row, "loss": -total / count if count else None, "tokens": int(count)}
        for row, (total, count) in zip(rows, found.tolist(), strict=True)
    ]
