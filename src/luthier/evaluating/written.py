"""Rows with an answer, which the model writes: one greedily, or several drawn ones with the metrics at k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.data import Scorer, judge, refuse_unscorable
from luthier.engine.answers import answers
from luthier.evaluating.job import Found, Job, bar, row_tasks

if TYPE_CHECKING:
    import numpy as np


def with_answers(job: Job) -> Found:
    """What is written after each prompt, against the right answer, by the scorer."""
    scorer = job.scorer
    if scorer is None:
        raise LuthierError(
            f"{job.examples.source} has no answers to score ({job.examples.layout} rows); give rows with a prompt and "
            "an answer."
        )
    rows = job.examples.rows
    if job.task == "seq2seq":
        positions = models.positions(job.model)
        encoded = data.encode_all(
            job.examples, job.processor, task=job.task, max_length=job.max_length, positions=positions
        )
        prompts = [feature["input_ids"] for feature in encoded]
    else:
        prompts = [data.prompt_ids(example, job.processor) for example in rows]
    longest = max(map(len, prompts))
    if job.max_length is not None and longest > job.max_length:
        raise LuthierError(f"a prompt has {longest} tokens, the maximum is {job.max_length}.")
    refuse_unscorable(scorer, rows)
    if job.samples > 1:
        return _drawn(job, scorer, prompts)
    with bar(job, len(prompts)) as done:
        texts = answers(job.model, job.processor, prompts, job.sampling, job.batch, done, row_tasks(job))
    judged = [judge(scorer, text, example) for text, example in zip(texts, rows, strict=True)]
    truths = [example.answer for example in rows]
    scores = [score for score, _ in judged]
    failed = [(row.row, reason) for row, (_, reason) in zip(rows, judged, strict=True) if reason]
    return Found(texts, truths, scores, lambda left, _: {scorer.name: float(left.mean())}, failed=failed)


def _drawn(job: Job, scorer: Scorer, prompts: list[list[int]]) -> Found:
    """Several answers to each prompt, and the metrics at k."""
    from luthier.evaluating.samples import named

    count, rows, tasks = job.samples, job.examples.rows, row_tasks(job)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    told = None if tasks is None else [task for task in tasks for _ in range(count)]
    with bar(job, len(repeated)) as done:
        texts = answers(job.model, job.processor, repeated, job.sampling, job.batch, done, told)
    drawn = [texts[i * count : (i + 1) * count] for i in range(len(rows))]
    judged = [[judge(scorer, text, example) for text in each] for each, example in zip(drawn, rows, strict=True)]
    rights = [sum(score == 1 for score, _ in each) for each in judged]
    failed = [(row.row, r) for row, each in zip(rows, judged, strict=True) for _, r in each if r]
    values = named(scorer.name, rights, count)
    listed = [
        {"row": row.row, "prediction": each, "answer": row.answer, "right": right}
        for row, each, right in zip(rows, drawn, rights, strict=True)
    ]
    matrix: Any = [list(each) for each in zip(*values.values(), strict=True)]
    names = list(values)

    def figures(left: np.ndarray, _: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(names, left.mean(0), strict=True)}

    return Found(drawn, [row.answer for row in rows], matrix, figures, failed=failed, listed=listed)
