"""Speech to text: what a model writes down of sounds, how sure it is, and how it is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import widened
from luthier.core.paths import path_of
from luthier.core.sites.probe import eval_mode
from luthier.data.options import IGNORED, Feature
from luthier.data.speech import parts, prefix
from luthier.engine.stops import stop_ids, text_of
from luthier.evaluating import errors
from luthier.evaluating.job import Found, Job, bar
from luthier.evaluating.outputs import Reading
from luthier.evaluating.sampling import Sampling, within
from luthier.models.half import in_its_dtype
from luthier.models.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor

Said = tuple[str, list[int]]
"""A text and its tokens, up to the one that stops."""
LABELS = "labels"


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


def transcribed(reading: Reading, features: Sequence[Feature], sampling: Sampling) -> list[Said]:
    """Returns what the model says of each sound, behind its start token and the `labels` of its features."""
    import torch

    from luthier.training.task_columns import routed

    model, tokenizer = reading.model, parts(reading.processor)[1]
    stops, found = stop_ids(model, tokenizer), [("", [])] * len(features)
    order = sorted(range(len(features)), key=lambda i: (len(features[i][LABELS]), -data.length_of(features[i])))
    with eval_mode(model), torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        for chosen in _batches(order, features, reading.batch):
            with routed(model, reading.tasks and [reading.tasks[i] for i in chosen]):
                new = _continued(reading, [features[i] for i in chosen], sampling, stops)
            for i, ids in zip(chosen, new.tolist(), strict=True):
                found[i] = text_of(tokenizer, ids, stops).strip(), _kept(ids, stops)
            reading.done(len(chosen))
    return found


def _batches(order: list[int], features: Sequence[Feature], size: int) -> list[list[int]]:
    """Rows of prefixes of one length together."""
    lengths = dict.fromkeys(len(features[i][LABELS]) for i in order)
    groups = [[i for i in order if len(features[i][LABELS]) == length] for length in lengths]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _continued(reading: Reading, features: list[Feature], sampling: Sampling, stops: list[int]) -> Tensor:
    """The new tokens of each row [rows, at most max_new_tokens], by transformers' own loop.

    Whisper's own `generate` is for recordings of any length with time stamps; for one window without, it comes to this.
    """
    import torch
    from transformers import GenerationConfig, GenerationMixin

    model, held = reading.model, reading.model.generation_config
    inputs = data.collator_for(models.SPEECH, reading.processor)(features)
    inputs.pop("rows")
    before = torch.cat([torch.full((len(features), 1), start_of(model)), inputs.pop(LABELS).long()], 1)
    inputs = in_its_dtype(model, {name: value.to(model.device) for name, value in inputs.items()})
    fitting = within(sampling, before.shape[1], models.positions(model))
    config = fitting.config(stops, stops[0] if stops else 0)
    config.update(
        suppress_tokens=getattr(held, "suppress_tokens", None),
        begin_suppress_tokens=getattr(held, "begin_suppress_tokens", None),
        decoder_start_token_id=start_of(model),
    )
    plain: Any = GenerationMixin
    model.generation_config = GenerationConfig()
    try:
        with quiet():  # which asks for a mask of sounds that are of one length
            whole = plain.generate(model, **inputs, decoder_input_ids=before.to(model.device), generation_config=config)
    finally:
        model.generation_config = held
    return whole[:, before.shape[1] :]


def start_of(model: Any) -> int:
    """Returns the token that starts the decoder."""
    told = (getattr(each, "decoder_start_token_id", None) for each in (model.config, model.generation_config))
    found = next((token for token in told if token is not None), None)
    if found is None:
        raise LuthierError(f"{type(model).__name__} does not say what starts its decoder (decoder_start_token_id).")
    return int(found)


def _kept(ids: list[int], stops: list[int]) -> list[int]:
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))]


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
    counts: Any = np.array([errors.counted(a, b) for a, b in zip(said, right, strict=True)])
    listed = [
        {"row": row, "prediction": a, "answer": b, "word_errors": int(each[1]), "words": int(each[0])}
        for row, a, b, each in zip(job.numbers, said, right, counts, strict=True)
    ]
    return Found(counts, counts, None, lambda left, _: errors.figures(left), _loss(job, features), listed=listed)


def _loss(job: Job, features: Sequence[Feature]) -> float:
    """The mean over the tokens of all labels, of which the prefix is a part, as in training."""
    total = count = 0.0
    for _, out, inputs in job.reading().outputs(features):
        tokens = int(inputs[LABELS].ne(IGNORED).sum())
        total, count = total + out.loss.item() * tokens, count + tokens
    return total / max(count, 1)
