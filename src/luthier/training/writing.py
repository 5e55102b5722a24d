"""Figures of answers that the model writes to rows that are held out, for a run whose `best` goes by one."""

from __future__ import annotations

from typing import Any

from luthier.core.contracts.example import Examples
from luthier.core.errors import LuthierError
from luthier.data import SCORERS, judge, prompt_ids, refuse_unscorable, scorer_for
from luthier.data.pictures import seen_in
from luthier.data.text_metrics import TEXT_METRICS, check_metrics, of_texts
from luthier.engine.sampler import Ask, Sampler
from luthier.training.spec import Run

WRITTEN = (*SCORERS, "gym", *(name for name in TEXT_METRICS if name not in SCORERS))
"""Figures of written answers: scorers, and metrics of texts."""
MORE = 16
"""Tokens that an answer may have beyond those of the longest right one."""


def writes(run: Run, task: str) -> bool:
    """Returns whether the evaluations of a run write answers."""
    return task == "causal-lm" and run.training.best in WRITTEN


def check_written(run: Run, task: str, held: Examples) -> None:
    """Raises `LuthierError`, before the weights are loaded, for rows that a run has no answers to score of."""
    if not writes(run, task):
        return
    name = str(run.training.best)
    if held.scorer is None:
        raise LuthierError(f"best is {name}, which compares written answers, and {held.source} has none to compare.")
    if name in TEXT_METRICS:
        check_metrics([name])
    if name in SCORERS:
        refuse_unscorable(_scorer(held, name), held.rows)


def _scorer(held: Examples, name: str) -> Any:
    return held.scorer if held.scorer is not None and held.scorer.name == name else scorer_for(held, name)


class Writer:
    """Writes one greedy answer to each row that is held out, by the engine's batches, and scores them."""

    def __init__(self, run: Run, model: Any, processor: Any, held: Examples) -> None:
        self.name, self.held = str(run.training.best), held
        self.sampler = Sampler(model, processor, run.name)
        prompts = [prompt_ids(example, processor) for example in held.rows]
        right = [processor(example.answer or "", add_special_tokens=False)["input_ids"] for example in held.rows]
        most = max(map(len, right)) + MORE
        self.asks = [Ask(tuple(prompt), 0, most, seen=seen_in(prompt)) for prompt in prompts]

    def figures(self) -> dict[str, float]:
        """Returns the figure by its name."""
        said = [drawn.text for drawn in self.sampler(self.asks, 0.0, 1.0)]
        if self.name in TEXT_METRICS and self.name not in SCORERS:
            values, _ = of_texts([self.name], said, [example.answer for example in self.held.rows])
            return values  # an answer that the metric fails on counts as an empty one
        scorer = _scorer(self.held, self.name)
        scores = [judge(scorer, text, example)[0] for text, example in zip(said, self.held.rows, strict=True)]
        return {self.name: sum(scores) / len(scores)}
