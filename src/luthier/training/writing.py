"""Figures of answers that the model writes to rows that are held out, for a run whose `best` goes by one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.numerics import word_errors
from luthier.data import SCORERS, judge, prompt_ids, refuse_unscorable, scorer_for
from luthier.data.options import IGNORED
from luthier.data.pictures import seen_in
from luthier.data.speech import parts, prefix
from luthier.data.text_metrics import TEXT_METRICS, check_metrics, of_texts, refuse_references
from luthier.engine.answers import answers
from luthier.engine.outputs import Reading, task_names
from luthier.engine.sampler import Ask, Sampler
from luthier.engine.settings import Sampling
from luthier.engine.transcripts import LABELS, transcribed
from luthier.models import SPEECH
from luthier.training.apart import encoded_of
from luthier.training.spec import Run

GYM = "gym"
RUNS_CODE = "tests"
"""The scorer that runs what the model writes, which only `luthier evaluate --execute` does."""
WRITTEN = tuple(name for name in dict.fromkeys((*SCORERS, GYM, *TEXT_METRICS)) if name != RUNS_CODE)
"""Figures of written answers: scorers, and metrics of texts."""
ANSWERED = ("causal-lm", "seq2seq")
"""Tasks with answers in writing."""
MORE = 16
"""Tokens that an answer may have beyond those that are learned of the longest one."""


def writes(run: Run, task: str) -> bool:
    """Returns whether the evaluations of a run write answers."""
    return run.training.best in written_of(task)


def written_of(task: str) -> tuple[str, ...]:
    """Returns the figures of what a model for this task writes, each told where `best` goes by it."""
    if task == SPEECH:
        return word_errors.NAMES
    return WRITTEN if task in ANSWERED else ()


@dataclass(frozen=True)
class Asked:
    """The rows that the evaluations of a run write answers to."""

    held: Examples
    """Those that could be encoded."""
    asks: tuple[Any, ...]
    """What the model is asked at each: a prompt (`Ask`), the tokens that an encoder reads, or a sound's features."""
    most: int
    """The most tokens of an answer."""


def asked_of(
    run: Run, held: Examples, features: Sequence[dict[str, Any]], processor: Any, positions: int | None
) -> Asked:
    """Returns what the evaluations of a run ask, of the encoded rows held out; `positions` are those of the model.

    Raises `LuthierError`, before the weights are loaded, for rows that have no answers to score, or no room for one.
    """
    left = encoded_of(held, features)
    if held.task != SPEECH:
        _check(str(run.training.best), left)
    rollouts = run.objective.rollouts(0, run.training.seed)
    most = max(_longest(features) + MORE, 0 if rollouts is None else rollouts.max_tokens)
    if held.task == SPEECH:
        before = [prefix(example, parts(processor)[1]) for example in left.rows]
        asks = [feature | {LABELS: ids} for feature, ids in zip(features, before, strict=True)]
    elif held.task == "seq2seq":
        asks = [list(feature["input_ids"]) for feature in features]
    else:
        asks = [_ask(example, processor, most, positions) for example in left.rows]
    return Asked(left, tuple(asks), most)


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
    """Writes one greedy answer to each row that is held out, and scores them."""

    def __init__(self, run: Run, model: Any, processor: Any, asked: Asked) -> None:
        self.best, self.name = str(run.training.best), run.name
        self.held, self.asked = asked.held, asked
        self.model, self.processor, self.batch = model, processor, run.training.batch
        self.warned = False

    @cached_property
    def sampler(self) -> Sampler:
        """What decodes the rows of a decoder."""
        return Sampler(self.model, self.processor, self.name)

    def figures(self) -> dict[str, float]:
        """Returns the figure by its name; an answer that the scorer or metric fails on is a wrong or empty one."""
        said = self._said()
        if self.held.task == SPEECH:
            rows = zip(said, self.held.rows, strict=True)
            found = word_errors.figures(np.array([word_errors.counted(text, row.answer or "") for text, row in rows]))
            return {self.best: found[self.best]}
        value, failed = self._scored(said)
        self._warn(failed)
        return {self.best: value}

    def _said(self) -> list[str]:
        """The answers: by the engine's batches, or by transformers' own loop where a model has an encoder, or its
        adapter goes by the task of a row."""
        asks, sampling, told = self.asked.asks, Sampling(self.asked.most), task_names(self.model, self.held.rows)
        if self.held.task == SPEECH:
            reading = Reading(self.model, self.processor, SPEECH, self.batch, told)
            return [text for text, _ in transcribed(reading, asks, sampling)]
        if self.held.task == "causal-lm" and told is None:
            return [drawn.text for drawn in self.sampler(asks, 0.0, 1.0)]
        prompts = [ask.seen or list(ask.prompt) if isinstance(ask, Ask) else ask for ask in asks]
        return answers(self.model, self.processor, prompts, sampling, self.batch, tasks=told)

    def _scored(self, said: Sequence[str]) -> tuple[float, Mapping[int, str]]:
        """(The figure, {place of an answer: why there is no score of it})."""
        rows = self.held.rows
        if self.best in TEXT_METRICS and self.best not in SCORERS:
            values, failed = of_texts([self.best], said, [example.answer for example in rows])
            return values[self.best], failed
        scorer = _scorer(self.held, self.best)
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
            f"{self.best} failed on {len(failed)} of {len(self.held)} written answers, which count as wrong; the first "
            f"is that to row {self.held.rows[first].row}: {failed[first]}",
            stacklevel=2,
        )
