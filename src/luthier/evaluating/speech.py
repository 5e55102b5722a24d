"""Speech to text: what a model writes down of sounds, how sure it is, and how it is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.numerics import word_errors
from luthier.core.numerics.wide import widened
from luthier.core.paths import path_of
from luthier.data.options import IGNORED, Feature
from luthier.data.speech import parts, prefix
from luthier.engine.outputs import Reading
from luthier.engine.settings import Sampling
from luthier.engine.transcripts import LABELS, transcribed
from luthier.evaluating.job import Found, Job, bar


def sounds_of(prompts: Sequence[Any]) -> list[data.Example]:
    """Returns prompts to a speech model as rows without their text: paths of sounds, or examples with one."""
    return [_sound(prompt, number) for number, prompt in enumerate(prompts, 1)]


def _sound(prompt: Any, number: int) -> data.Example:
    if isinstance(prompt, data.Example):
        if prompt.audio is None:
            raise LuthierError(f"row {prompt.row} has no sound, and the model writes down sounds.")
        return replace(prompt, answer=None)
    if not isinstance(prompt, str | Path) or not os.path.isfile(os.path.expanduser(prompt)):
        raise LuthierError(
            f"prompt {number} is not a file: {str(prompt)[:80]!r}; the model writes down sounds, by their path."
        )
    return data.Example(row=number, audio=str(path_of(prompt)))


def written_down(model: Any, processor: Any, prompts: Sequence[Any], sampling: Sampling, batch: int) -> list[str]:
    """Returns the text of each sound: a path, or an example with one."""
    examples = data.Examples(sounds_of(prompts), "audio-text", "the prompts")
    features = data.encode_all(examples, processor, task=models.SPEECH, max_length=None)
    return [text for text, _ in transcribed(Reading(model, processor, models.SPEECH, batch), features, sampling)]


def sureness(reading: Reading, features: Sequence[Feature], answers: Sequence[list[int]]) -> list[float]:
    """Returns (Π_t p(y_t | sound, y_<t))^(1/T) of each answer behind the labels of its features, by one pass."""
    import torch

    befores = [len(feature[LABELS]) for feature in features]
    both = [
        f | {LABELS: [*f[LABELS], *ids], "row": i} for i, (f, ids) in enumerate(zip(features, answers, strict=True))
    ]
    found = [0.0] * len(features)
    for chosen, out, inputs in reading.outputs(both):
        labels = inputs[LABELS].clone()
        for line, i in enumerate(chosen):
            labels[line, : befores[i]] = IGNORED
        wide = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="none")
        means = widened(losses.view(labels.shape)).sum(1) / labels.ne(IGNORED).sum(1).clamp(min=1)
        for i, mean in zip(chosen, means.neg().exp().tolist(), strict=True):
            found[i] = mean
    return found


def with_transcripts(job: Job) -> Found:
    """Sounds with what is said in them: errors of words and characters, and the loss of the right texts."""
    import numpy as np

    rows = job.examples.rows
    features, tokenizer = job.encoded(), parts(job.processor)[1]
    bare = [f | {LABELS: prefix(row, tokenizer)} for f, row in zip(features, rows, strict=True)]
    with bar(job, len(rows)) as done:
        said = [text for text, _ in transcribed(job.reading(done), bare, job.sampling)]
    right = [example.answer or "" for example in rows]
    counts: Any = np.array([word_errors.counted(a, b) for a, b in zip(said, right, strict=True)])
    listed = [
        {"row": row, "prediction": a, "answer": b, "word_errors": int(each[1]), "words": int(each[0])}
        for row, a, b, each in zip(job.numbers, said, right, counts, strict=True)
    ]
    return Found(counts, counts, None, lambda left, _: word_errors.figures(left), _loss(job, features), listed=listed)


def _loss(job: Job, features: Sequence[Feature]) -> float:
    """The mean over the tokens of all labels, of which the prefix is a part, as in training."""
    total = count = 0.0
    for _, out, inputs in job.reading().outputs(features):
        tokens = int(inputs[LABELS].ne(IGNORED).sum())
        total, count = total + out.loss.item() * tokens, count + tokens
    return total / max(count, 1)
