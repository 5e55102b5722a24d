"""What a model says to encoded rows, batch by batch, and what is read from it: tags of words, places, vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier import data
from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import routed
from luthier.core.contracts.example import Example
from luthier.core.contracts.objective import ALSO, TASKS, Feature
from luthier.core.contracts.router import names_of
from luthier.core.sites.probe import eval_mode
from luthier.data.labels import empty_place, windows
from luthier.data.options import Options
from luthier.methods.objectives.info_nce import TEXTS, mean_pooled

if TYPE_CHECKING:
    import numpy as np

NOT_READ = (ALSO, TEXTS, TASKS, "labels")
"""What features of texts hold for the loss, and no forward pass takes."""
LONGEST_ANSWER = 30
"""Tokens of an extracted answer at most, as in SQuAD's evaluations."""
BEST = 20
"""First and last tokens that are tried for an answer, the likeliest."""


@dataclass(frozen=True)
class Reading:
    """A model with what it reads by: everything that a pass over rows needs."""

    model: Any
    processor: Any
    task: str
    batch: int = 16
    tasks: Sequence[str] | None = None
    """The task of each row, for an adapter that goes by it."""
    done: Callable[[int], Any] = int
    """Hears of every n rows that are through."""

    def outputs(
        self, features: Sequence[Feature], rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], Any, dict[str, Any]]]:
        """Yields (places of the features, the model's output, its inputs) of each batch, the longest rows first.

        `rows` is the place of each feature's row; default: there is one feature a row.
        """
        import torch

        collator = data.collator_for(self.task, self.processor)
        order = sorted(range(len(features)), key=lambda i: data.length_of(features[i]), reverse=True)
        places = range(len(features)) if rows is None else rows
        with eval_mode(self.model), torch.inference_mode():
            for start in range(0, len(order), self.batch):
                chosen = order[start : start + self.batch]
                inputs = collator([features[i] for i in chosen])
                inputs.pop("rows")
                inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
                with routed(self.model, self.tasks and [self.tasks[places[i]] for i in chosen]):
                    yield chosen, self.model(**inputs), inputs
                self.done(len(chosen))


def task_names(model: Any, rows: Sequence[Example]) -> list[str] | None:
    """Returns the task of each row, where an adapter on the model goes by it and the rows have the column `task`."""
    state = find_state(model)
    if state is None or not any(names_of(component.form) for component in state.components):
        return None
    told = [row.meta.get("task") for row in rows]
    return None if None in told else [str(task) for task in told]


def logits_of(reading: Reading, features: Sequence[Feature]) -> tuple[np.ndarray, float]:
    """Returns (logits [rows, outputs] in the order of the rows, mean loss)."""
    import numpy as np

    found, total = np.zeros((len(features), 0)), 0.0
    for chosen, out, _ in reading.outputs(features):
        values = out.logits.float().cpu().numpy()
        found = found if found.shape[1] else np.zeros((len(features), values.shape[-1]), dtype=values.dtype)
        found[chosen] = values
        total += out.loss.item() * len(chosen)
    return found, total / len(features)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns softmax(logits) over the last dimension, in float64."""
    import numpy as np

    wide = logits.astype(np.float64)
    shifted = np.exp(wide - wide.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def tags_of(reading: Reading, features: Sequence[Feature]) -> tuple[list[np.ndarray], float]:
    """Returns (the probabilities of the classes at the first token of each word, [words, classes] for each row, mean
    loss of the words)."""
    import numpy as np

    found: list[Any] = [None] * len(features)
    total = count = 0.0
    for chosen, out, inputs in reading.outputs(features):
        logits = out.logits.float().cpu().numpy()
        for i, values in zip(chosen, logits, strict=True):
            wanted = np.array(features[i]["labels"]) != -100
            found[i] = probabilities(values[: len(wanted)][wanted])
        words = int(inputs["labels"].ne(-100).sum())
        total, count = total + out.loss.item() * words, count + words
    return found, total / max(count, 1)


@dataclass(frozen=True)
class Place:
    """An answer to a question: where it stands in the context, and how likely it is among all that were weighed."""

    text: str
    """Empty: the context has no answer."""
    start: int | None
    """Its first character."""
    probability: float


def places_of(
    reading: Reading, examples: data.Examples, most: int | None, unanswered: bool = True
) -> list[list[Place]]:
    """Returns the answers that were weighed for each row, the likeliest first.

    Score of an answer: the logit of its first token plus that of its last, of at most `LONGEST_ANSWER` tokens within
    one window of the context; of no answer, where `unanswered` may be, the least of the windows'. Probabilities are the
    softmax of the scores (Devlin et al. 2019, arXiv 1810.04805).
    """
    options = Options(most)
    parts = [windows(example, reading.processor, options) for example in examples.rows]
    flat = [(row, window, spans) for row, each in enumerate(parts) for window, spans in each]
    features = [{**window, "labels": 0, "end": 0, "row": row} for row, window, _ in flat]
    scored: list[list[tuple[float, int, int]]] = [[] for _ in parts]
    nothing = [float("inf")] * len(parts)
    for chosen, out, _ in reading.outputs(features, [row for row, _, _ in flat]):
        starts, ends = (each.float().cpu().numpy() for each in (out.start_logits, out.end_logits))
        for i, first, last in zip(chosen, starts, ends, strict=True):
            row, window, spans = flat[i]
            scored[row] += _weighed(first, last, spans)
            at = empty_place(window["input_ids"], reading.processor)
            nothing[row] = min(nothing[row], float(first[at] + last[at]))
    return [
        _ranked(each, example.text_pair or "", none if unanswered else None)
        for each, example, none in zip(scored, examples.rows, nothing, strict=True)
    ]


def _weighed(first: np.ndarray, last: np.ndarray, spans: Sequence[Any]) -> list[tuple[float, int, int]]:
    """(score, first character, character behind the last) of the likeliest answers in a window."""
    inside = [i for i, span in enumerate(spans) if span is not None and span[1] > span[0]]
    starts = sorted(inside, key=lambda i: -first[i])[:BEST]
    ends = sorted(inside, key=lambda i: -last[i])[:BEST]
    return [
        (float(first[a] + last[b]), spans[a][0], spans[b][1])
        for a in starts
        for b in ends
        if a <= b < a + LONGEST_ANSWER
    ]


def _ranked(scored: list[tuple[float, int, int]], context: str, nothing: float | None) -> list[Place]:
    import numpy as np

    best: dict[tuple[int | None, int], float] = {}
    for score, a, b in scored:  # windows overlap
        best[a, b] = max(score, best.get((a, b), score))
    if nothing is not None or not best:
        best[None, 0] = 0.0 if nothing is None else nothing
    order = sorted(best, key=lambda span: -best[span])
    shares = probabilities(np.array([best[span] for span in order]))
    return [
        Place("" if a is None else context[a:b], a, float(share)) for (a, b), share in zip(order, shares, strict=True)
    ]


def vectors_of(reading: Reading, features: Sequence[Feature]) -> np.ndarray:
    """Returns the mean of each text's last hidden states, of length 1: [texts, d] in float32."""
    import numpy as np

    bare = [{key: value for key, value in each.items() if key not in NOT_READ} for each in features]
    found = np.zeros((len(features), 0), dtype=np.float32)
    for chosen, out, inputs in reading.outputs(bare):
        values = mean_pooled(out.last_hidden_state, inputs["attention_mask"]).float().cpu().numpy()
        found = found if found.shape[1] else np.zeros((len(features), values.shape[1]), dtype=np.float32)
        found[chosen] = values
    return found
