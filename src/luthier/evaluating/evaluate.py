"""The function `evaluate`: it scores a model on examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier import data
from luthier.core.contracts.component import check_type
from luthier.core.errors import LuthierError
from luthier.data import Examples, Scorer
from luthier.data.text_metrics import check_metrics, of_texts, refuse_references
from luthier.engine.settings import Sampling
from luthier.evaluating.job import Found, Job, bar, row_tasks
from luthier.evaluating.labelled import outputs_of, with_class, with_number
from luthier.evaluating.result import Evaluation
from luthier.evaluating.speech import with_transcripts
from luthier.evaluating.structured import with_classes, with_places, with_tags, with_vectors
from luthier.evaluating.written import with_answers

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 2000
"""Bootstrap samples of an interval."""


def evaluate(
    model: Any,
    processor: Any,
    examples: Examples,
    *,
    scorer: Scorer | None = None,
    batch: int = 16,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    task: str | None = None,
    progress: bool = True,
    keep_predictions: bool = True,
    seed: int = 0,
    samples: int = 1,
    temperature: float = 0.0,
    yes_no: bool = False,
    metrics: Sequence[str] = (),
) -> Evaluation:
    """Scores `model` on `examples`; neither of them is changed, the mode of the model included.

    Generative tasks answer greedily and score by `scorer` (the examples' own unless given); classification counts
    the likeliest class, regression compares numbers; of texts the mean loss is taken. Of several classes a text, those
    of a probability of at least 0.5 are taken; of tagged words the entities are compared, of extracted answers the
    words, of texts to embed which is nearest; of what is written down of sounds, `wer` and `cer`, the errors of words
    and characters over those of the right texts (less is better), `wer_plain` without case and punctuation, and
    `word_accuracy`, 1 - wer. Pairs of a chosen and a rejected answer are compared: by what a reward
    model gives them, by log π/π_ref where an adapter acts, else by how likely they are. Rows whose column `task` names
    several are also scored task by task. `task` is the examples' own unless given. Rows longer than `max_length` tokens
    are refused, and those of more tokens than the model has absolute positions. An answer that the scorer, or one of
    the `metrics`, fails on is wrong, and listed under `failed`. With `samples` n, n answers to each prompt are drawn at
    the `temperature`, and the metrics are `exact_match@k` and the like: the chance that k of them hold a right one.
    `metrics` compare the written answers with the right ones beside the scorer: rouge1, rouge2, rougeL, rougeLsum,
    bleu, chrf, exact_match. With
    `yes_no`, rows are questions whose answer is yes or no, and the score is `auc`, the mean over descriptions (column
    `task`) of the area under the ROC curve of log p(yes) - log p(no). Raises `LuthierError` when no scorer fits, or a
    label is not one of the model's.
    """
    check_type("examples", examples, Examples)
    if batch < 1:
        raise LuthierError(f"batch is {batch}; expected at least 1.")
    if samples < 1:
        raise LuthierError(f"samples is {samples}; expected at least 1.")
    if samples > 1 and not temperature:
        raise LuthierError(f"{samples} answers at temperature 0 would all be the same; give a temperature, as 0.8.")
    wanted = task or examples.task
    chosen = scorer or examples.scorer
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    job = Job(
        model, processor, examples, wanted, chosen, batch, sampling, samples, max_length, progress, seed,
        tuple(metrics), yes_no,
    )  # fmt: skip
    if metrics:
        check_metrics(metrics)
        if measure_of(job) is not with_answers or samples > 1:
            raise LuthierError(f"metrics compare one written answer a row, and {wanted} rows here have none.")
        refuse_references(metrics, examples.rows)
    if (samples > 1 or temperature) and measure_of(job) is not with_answers:
        raise LuthierError(f"samples and temperature are of written answers, and {wanted} rows here have none.")
    return _summary(job, measure_of(job)(job), keep_predictions)


def _summary(job: Job, found: Found, keep: bool) -> Evaluation:
    import numpy as np

    left = np.asarray(found.predictions if found.scores is None else found.scores)
    right = np.asarray(found.truths if found.scores is None else found.scores)
    metrics = found.figures(left, right)
    score = next(iter(metrics))
    classes, confused = found.classes, {}
    if found.names is not None:
        from luthier.core.numerics.agreement import by_class, macro
        from luthier.evaluating.classes import confusion

        classes = by_class(found.predictions, found.truths, found.names)
        confused = confusion(found.predictions, found.truths, found.names)
        metrics |= macro(classes)
    if found.classes:
        from luthier.core.numerics.agreement import macro

        metrics |= macro(found.classes)
    compared, failed = _further(job, found)
    metrics |= compared
    return Evaluation(
        score=metrics[score],
        count=len(left),
        interval=_alike(found, score, left, right)
        or bootstrap(lambda rows: found.figures(left[rows], right[rows])[score], len(left), job.seed),
        predictions=_kept(job, found) if keep else [],
        loss=found.loss,
        metrics=metrics,
        failed=failed,
        tasks=_by_task(job, lambda rows: found.figures(left[rows], right[rows])),
        classes=classes,
        confusion=confused,
    )


def _further(job: Job, found: Found) -> tuple[dict[str, float], list[tuple[int, str]]]:
    """The further metrics, and the answers that the scorer or one of them failed on, each once."""
    if not job.metrics:
        return {}, found.failed
    values, failed = of_texts(job.metrics, found.predictions, found.truths)
    told = {job.examples.rows[place].row: why for place, why in failed.items()} | dict(found.failed)
    return values, sorted(told.items())


def _by_task(job: Job, figures: Callable[[list[int]], dict[str, float]]) -> dict[str, dict[str, float]]:
    """The figures of each task, in the order of the first rows, where the column `task` names several."""
    places: dict[str, list[int]] = {}
    for index, row in enumerate(job.examples.rows):
        places.setdefault(str(row.meta.get("task", "")), []).append(index)
    return {name: {"rows": len(rows), **figures(rows)} for name, rows in places.items()} if len(places) > 1 else {}


def _kept(job: Job, found: Found) -> list[dict[str, Any]]:
    if found.listed is not None:
        return found.listed
    rows = [example.row for example in job.examples.rows]
    listed = [
        {"row": row, "prediction": prediction, "answer": truth}
        for row, prediction, truth in zip(rows, found.predictions, found.truths, strict=True)
    ]
    scores = (
        found.scores
        if found.scores is not None
        else [float(p == t) for p, t in zip(found.predictions, found.truths, strict=True)]
    )
    if job.task == "regression":
        return listed
    if found.confidences is not None:
        listed = [line | {"confidence": c} for line, c in zip(listed, found.confidences, strict=True)]
    return [line | {"score": score} for line, score in zip(listed, scores, strict=True)]


def _alike(found: Found, score: str, left: np.ndarray, right: np.ndarray) -> tuple[float, float] | None:
    """The interval of a share of rows that are all right or all wrong; None of others, and of what is no such share."""
    from luthier.core.numerics.resampling import exact_interval

    if found.scores is None:
        return exact_interval((left == right).astype(float)) if score == "accuracy" and left.ndim == 1 else None
    if left.ndim > 1:  # several figures of a row, of which the first is a share where it is that of one answer
        return exact_interval(left[:, 0]) if score.endswith("@1") else None
    return exact_interval(left)


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, seed: int) -> tuple[float, float]:
    """Returns the 2.5% and 97.5% quantiles of `statistic(rows)` over samples of `count` rows with replacement."""
    import numpy as np

    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _questioned(job: Job) -> Found:
    import numpy as np

    from luthier.evaluating.yes_no import by_description, check_questions, description, sureness, truth

    rows, source = job.examples.rows, job.examples.source
    check_questions(job.examples)
    if job.task == "classification":
        names = job.classes()
        logits, _, loss = outputs_of(job, names)
        sure = logits[:, names.index("yes")] - logits[:, names.index("no")]
    else:
        loss = None
        with bar(job, len(rows)) as done:
            sure = sureness(
                job.model, job.processor, job.examples, batch=job.batch, max_length=job.max_length, done=done
            )
    told = [description(row) for row in rows]
    place = {each: i for i, each in enumerate(dict.fromkeys(told))}
    found = np.stack([sure, np.asarray([place[each] for each in told])], -1)
    right = [float(truth(row, source)) for row in rows]
    listed = [
        {"row": row.row, "prediction": "yes" if s > 0 else "no", "answer": "yes" if t else "no", "log_odds": float(s)}
        for row, s, t in zip(rows, sure, right, strict=True)
    ]
    pairs: Any = found
    return Found(pairs, right, None, by_description, loss, listed=listed)


def _compared(job: Job) -> Found:
    from luthier.evaluating.preferences import compared, figures, listed

    with bar(job, len(job.examples)) as done:
        found, names = compared(
            job.model,
            job.processor,
            job.examples,
            task=job.task,
            batch=job.batch,
            max_length=job.max_length,
            tasks=row_tasks(job),
            done=done,
        )
    rows = [example.row for example in job.examples.rows]
    pairs: Any = found
    return Found(pairs, pairs, None, lambda left, _: figures(left, names), listed=listed(found, names, rows))


def _foretold(job: Job) -> Found:
    from luthier.evaluating.texts import figures, foretold, listed

    with bar(job, len(job.examples)) as done:
        found = foretold(job.model, job.processor, job.examples, batch=job.batch, max_length=job.max_length, done=done)
    told = figures(found)
    rows = [example.row for example in job.examples.rows]
    texts: Any = found
    return Found(texts, texts, None, lambda left, _: figures(left), told["loss"], listed=listed(found, rows))


MEASURES: dict[str, Callable[[Job], Found]] = {
    "causal-lm": with_answers,
    "seq2seq": with_answers,
    "classification": with_class,
    "image-classification": with_class,
    "audio-classification": with_class,
    "speech-to-text": with_transcripts,
    "regression": with_number,
    "multi-label": with_classes,
    "token-classification": with_tags,
    "question-answering": with_places,
    "embedding": with_vectors,
}
"""How the rows of each task are measured."""


def measure_of(job: Job) -> Callable[[Job], Found]:
    """How the rows are measured; raises `LuthierError` for those that nothing measures."""
    kind = data.kind_of(job.examples.layout)
    if job.yes_no:
        return _questioned
    if kind in ("answers", "texts"):
        return _foretold if job.examples.layout == "text" and job.task == "causal-lm" else MEASURES[job.task]
    if kind == "pairs":
        return _compared
    raise LuthierError(
        f"{job.examples.source} has single answers with a label; a preference is measured on pairs of answers to one "
        "prompt (prompt, chosen, rejected)."
    )
