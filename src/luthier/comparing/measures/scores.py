"""What a fitted model scores on the test part, how sure it is of itself, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.comparing.fitted import Fitted
from luthier.comparing.measures.bootstrap import SCORES
from luthier.comparing.plan import Job
from luthier.comparing.shots import shown
from luthier.comparing.sources import Sourced
from luthier.comparing.study import Study
from luthier.core.numerics.confidence import calibration_error
from luthier.data import Example, Examples
from luthier.evaluating import Evaluation, evaluate

SAMPLES = 8
"""Test rows whose answers are kept, over the parts of the test in turn."""


@dataclass(frozen=True)
class Tested:
    """The test of one run."""

    metric: str
    score: float
    metrics: dict[str, float]
    tests: dict[str, dict[str, float]]
    rows: int
    hits: dict[str, list[float]]
    answers: dict[str, list[tuple[Any, Any]]]
    calibration_error: float | None
    samples: list[dict[str, str]] = field(default_factory=list)


def tested(study: Study, job: Job, fitted: Fitted) -> Tested:
    """Returns every part of the job's test."""
    read, limit = job.data, job.run.training.max_length
    parts = shown(read, job.method, job.run)
    found = {part: test(study, read, each, fitted, limit) for part, each in parts.items()}
    tests = {part: _named(each, read) for part, each in found.items()}
    names = [name for name in next(iter(tests.values())) if all(name in each for each in tests.values())]
    metrics = {name: sum(each[name] for each in tests.values()) / len(tests) for name in names}
    return Tested(
        metric=read.metric,
        score=metrics[read.metric],
        metrics=metrics,
        tests=tests,
        rows=sum(each.count for each in found.values()),
        hits={part: hits for part, each in found.items() if (hits := _hits(each, read))},
        answers={part: answers for part, each in found.items() if (answers := _answers(each, read))},
        calibration_error=_calibration(list(found.values())),
        samples=_samples(read, found),
    )


def test(study: Study, read: Sourced, examples: Examples, fitted: Fitted, max_length: int) -> Evaluation:
    """One part. Prompts to answer may be of any length; rows to classify are as training bounds them."""
    return evaluate(
        fitted.model,
        fitted.processor,
        examples,
        task=read.task,
        batch=study.batch,
        max_new_tokens=study.data[read.name].max_new_tokens,
        max_length=None if examples.scorer and not read.labels else max_length,
        progress=False,
    )


def _named(found: Evaluation, read: Sourced) -> dict[str, float]:
    """The metrics of a part; where parts are scored by different scorers, their score is called so."""
    return found.metrics if read.metric in found.metrics else {read.metric: found.score}


def _hits(found: Evaluation, read: Sourced) -> list[float]:
    """What each row adds to the main metric, if that is a mean of rows."""
    scores = [line["score"] for line in found.predictions if "score" in line]
    return [] if read.metric in SCORES else [float(score) for score in scores]


def _answers(found: Evaluation, read: Sourced) -> list[tuple[Any, Any]]:
    """(truth, prediction) of each row, if the main metric is not a mean of rows."""
    return [(x["answer"], x["prediction"]) for x in found.predictions] if read.metric in SCORES else []


def _calibration(parts: list[Evaluation]) -> float | None:
    lines = [line for part in parts for line in part.predictions if "confidence" in line]
    return calibration_error([x["confidence"] for x in lines], [x["score"] for x in lines]) if lines else None


def _samples(read: Sourced, found: dict[str, Evaluation]) -> list[dict[str, str]]:
    share = -(-SAMPLES // len(found))
    kept = [
        {"prompt": prompt(example), "expected": str(line["answer"]), "answer": str(line["prediction"])}
        for part, each in found.items()
        for example, line in list(zip(read.tests[part].rows, each.predictions, strict=True))[:share]
    ]
    return kept[:SAMPLES]


def prompt(example: Example) -> str:
    """Returns a row's input as a person reads it."""
    if example.messages is not None:
        turns: list[Any] = [turn.get("content") or "" for turn in example.messages]
        return "\n\n".join(map(str, turns[:-1]))
    texts = [text for text in (example.text, example.text_pair) if text is not None]
    return "\n\n".join(texts) if texts else f"row {example.row}"
