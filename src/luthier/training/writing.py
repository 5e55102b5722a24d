"""Figures of answers that the model writes to rows that are held out, for a run whose `best` goes by one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.lazy import kept
from luthier.data import SCORERS, judge, prompt_ids, refuse_unscorable, scorer_for
from luthier.data.options import IGNORED
from luthier.data.pictures import seen_in
from luthier.data.text_metrics import TEXT_METRICS, check_metrics, of_texts, refuse_references
from luthier.engine.sampler import Ask, Sampler
from luthier.training.spec import Run

GYM = "gym"
RUNS_CODE = "tests"
"""The scorer that runs what the model writes, which only `luthier evaluate --execute` does."""
WRITTEN = tuple(name for name in dict.fromkeys((*SCORERS, GYM, *TEXT_METRICS)) if name != RUNS_CODE)
"""Figures of written answers: scorers, and metrics of texts."""
MORE = 16
"""Tokens that an answer may have beyond those that are learned of the longest one."""


def writes(run: Run, task: str) -> bool:
    """Returns whether the evaluations of a run write answers."""
    return task == "causal-lm" and run.training.best in WRITTEN


@dataclass(frozen=True)
class Asked:
    """The rows that the evaluations of a run write answers to."""

    held: Examples
    """Those that could be encoded."""
    asks: tuple[Ask, ...]
    """The prompt of each."""


def asked_of(
    run: Run, held: Examples, features: Sequence[dict[str, Any]], processor: Any, positions: int | None
) -> Asked:
    """Returns what the evaluations of a run ask, of the encoded rows held out; `positions` are those of the model.

    Raises `LuthierError`, before the weights are loaded, for rows that have no answers to score, or no room for one.
    """
    numbers = {feature["row"] for feature in features}  # skip_bad_rows leaves others out
    left = held.keep(kept(held.rows, (place for place, row in enumerate(held.rows) if row.row in numbers)))
    _check(str(run.training.best), left)
    rollouts = run.objective.rollouts(0, run.training.seed)
    most = max(_longest(features) + MORE, 0 if rollouts is None else rollouts.max_tokens)
    return Asked(left, tuple(_ask(example, processor, most, positions) for example in left.rows))


def _check(name: str, held: Examples) -> None:
    if name == GYM and not held.source.startswith("gym:"):
        raise LuthierError(f"best is gym, the scorer of gym: sources, and {held.source} is none; name another figure.")
    if name in SCORERS:
        refuse_unscorable(_scorer(held, name), held.rows)
    elif name in TEXT_METRICS:
        check_metrics([name])
        refuse_references([name], held.rows)


def _longest(features: Sequence[dict[str, Any]]) -> int:
    """The most tokens of a row that are learned: its answer as it is written, thoughts included."""
    return max(sum(label != IGNORED for label in feature["labels"]) for feature in features)


def _ask(example: Example, processor: Any, most: int, positions: int | None) -> Ask:
    prompt = prompt_ids(example, processor)
    room = most if positions is None else positions - len(prompt)
    if room < 1:
        raise LuthierError(
            f"row {example.row}: its prompt has {len(prompt)} tokens and the model {positions} positions, so that no "
            "answer fits that best could go by; shorten it, or let best go by the loss."
        )
    return Ask(tuple(prompt), 0, min(most, room), seen=seen_in(prompt))


def _scorer(held: Examples, name: str) -> Any:
    return held.scorer if held.scorer is not None and held.scorer.name == name else scorer_for(held, name)


class Writer:
    """Writes one greedy answer to each row that is held out, by the engine's batches, and scores them."""

    def __init__(self, run: Run, model: Any, processor: Any, asked: Asked) -> None:
        self.name, self.held, self.asks = str(run.training.best), asked.held, asked.asks
        self.sampler = Sampler(model, processor, run.name)
        self.warned = False

    def figures(self) -> dict[str, float]:
        """Returns the figure by its name; an answer that the scorer or metric fails on is a wrong or empty one."""
        value, failed = self._scored([drawn.text for drawn in self.sampler(self.asks, 0.0, 1.0)])
        self._warn(failed)
        return {self.name: value}

    def _scored(self, said: Sequence[str]) -> tuple[float, Mapping[int, str]]:
        """(The figure, {place of an answer: why there is no score of it})."""
        rows = self.held.rows
        if self.name in TEXT_METRICS and self.name not in SCORERS:
            values, failed = of_texts([self.name], said, [example.answer for example in rows])
            return values[self.name], failed
        scorer = _scorer(self.held, self.name)
        judged = [judge(scorer, text, example) for text, example in zip(said, rows, strict=True)]
        failed = {place: why for place, (_, why) in enumerate(judged) if why is not None}
        return sum(score for score, _ in judged) / len(judged), failed

    def _warn(self, failed: Mapping[int, str]) -> None:
        """Says once in a run that there are answers without a score."""
        if not failed or self.warned:
            return
        self.warned = True
        first = min(failed)
        warnings.warn(
            f"{self.name} failed on {len(failed)} of {len(self.held)} written answers, which count as wrong; the first "
            f"is that to row {self.held.rows[first].row}: {failed[first]}",
            stacklevel=2,
        )
