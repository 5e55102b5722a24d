"""What a model could do before and can do after: the loss on held text, and the scores of other data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from luthier import data
from luthier.comparing.fitted import Fitted
from luthier.comparing.measures.scores import test
from luthier.comparing.plan import Job, Plan
from luthier.comparing.record import write
from luthier.comparing.rows import LONGEST
from luthier.core.records import recorded
from luthier.data import Examples
from luthier.evaluating.texts import figures, foretold

FOLDER = "before"
HELD = "held text loss"


def forgetting(plan: Plan, job: Job, fitted: Fitted, held: Examples | None) -> dict[str, tuple[float, float]]:
    """Returns (before, after) by name; the frozen base under the adapter is the model before.

    Held text is measured on causal language models; other data sets of the study where task and classes are those
    of the run, on at most `study.others` rows of each part, unless the run's head is new, which knew nothing. What the
    base scores is kept in the study's folder.
    """
    tasks = _tasks(plan, job, held)
    found: dict[str, tuple[float, float]] = {}
    for name, (key, measure) in tasks.items():
        before = _known(plan.folder / FOLDER / job.model / f"{key}.json", lambda m=measure: _of_base(fitted, m))
        found[name] = before, measure(fitted) if fitted.trained else before
    return found


Measure = Callable[[Fitted], float]


def _tasks(plan: Plan, job: Job, held: Examples | None) -> dict[str, tuple[str, Measure]]:
    """By name: what a result stands on, and how it is had."""
    study, own, run = plan.study, job.data, job.run.training
    base = (run.precision, run.quantize)
    # rows to classify are refused or not by their length
    bound = (run.max_length,) if own.task not in data.LAYOUTS["messages"].tasks else ()
    tasks: dict[str, tuple[str, Measure]] = {}
    if held is not None and own.task == "causal-lm":
        tasks[HELD] = (
            _key(HELD, held.fingerprint, "in pieces", *base),
            lambda fitted: text_loss(fitted, held, study.batch),
        )
    for name, other in plan.data.items() if study.others and not job.new_head else ():
        if name == own.name or other.task != own.task or other.labels != own.labels:
            continue
        for part, rows in other.tests.items():
            few = rows.keep(rows.rows[: study.others])
            key = _key(name, few.fingerprint, other.metric, study.data[name].max_new_tokens, *base, *bound)
            shared = sum(part in each.tests for each in plan.data.values()) > 1
            tasks[f"{name} {part}" if shared else part] = (
                key,
                lambda fitted, o=other, f=few: test(study, o, f, fitted, run.max_length).score,
            )
    return tasks


def _key(*inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:24]


def _known(path: Path, measure: Callable[[], float]) -> float:
    """The value in a file, or measured now and kept."""
    if path.is_file():
        with recorded(path) as value:
            return float(value)
    value = measure()
    write(value, path)
    return value


def _of_base(fitted: Fitted, measure: Measure) -> float:
    with fitted.frozen():
        return measure(fitted)


def text_loss(fitted: Fitted, texts: Examples, batch: int) -> float:
    """Mean loss of the tokens of `texts`, read in pieces of `LONGEST` tokens."""
    found = foretold(fitted.model, fitted.processor, texts, batch=batch, max_length=LONGEST)
    return figures(found)["loss"]
