"""What a model says to rows of each task: columns that stand beside those of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.numerics import many
from luthier.core.numerics.wide import widened
from luthier.data import Examples
from luthier.data.bad import refuse
from luthier.data.pictures import PICTURES, seen_in
from luthier.engine.answers import written
from luthier.engine.outputs import Reading, logits_of, places_of, probabilities, tags_of, vectors_of
from luthier.engine.settings import Sampling
from luthier.evaluating import speech
from luthier.evaluating.generate import tokenised

if TYPE_CHECKING:
    import numpy as np

    from luthier.evaluating.drawn import Drawn

Said = dict[str, Any]
"""The columns of one row."""
PREDICTION, PROBABILITY = "prediction", "probability"


@dataclass(frozen=True)
class Asked:
    """Rows to predict on, with how."""

    reading: Reading
    examples: Examples
    encoded: Sequence[Any]
    """What the model reads of each row: features, or the tokens of a prompt."""
    threshold: float | None
    top_k: int
    max_new_tokens: int
    most: int | None
    """The most tokens of a row."""
    drawn: Drawn | None = None
    """Adapters that are drawn around that of the model."""

    @property
    def names(self) -> list[str]:
        """The classes, in the order of the model's."""
        config = self.reading.model.config
        return [config.id2label[i] for i in range(config.num_labels)]

    def part(self, places: range) -> Asked:
        """Returns the rows at these places."""
        rows = [self.examples.rows[i] for i in places]
        reading = self.reading
        if reading.tasks is not None:
            reading = replace(reading, tasks=[reading.tasks[i] for i in places])
        kept = replace(self.examples, rows=rows)  # without their fingerprint, which nobody asks for
        return replace(self, reading=reading, examples=kept, encoded=[self.encoded[i] for i in places])

    def sure(self, value: Any, probability: float) -> Any:
        """Returns the value, None where its probability is below the threshold."""
        return value if self.threshold is None or probability >= self.threshold else None


def ranked(asked: Asked, best: Sequence[tuple[Any, float]]) -> Said:
    """Returns `prediction` and `probability`, and with `top_k` those behind them as `prediction_2` and so on."""
    first, probability = best[0]
    found = {PREDICTION: asked.sure(first, probability), PROBABILITY: probability}
    for place in range(2, asked.top_k + 1):
        value, share = best[place - 1] if place <= len(best) else (None, None)
        found |= {f"{PREDICTION}_{place}": value, f"{PROBABILITY}_{place}": share}
    return found


def one_class(asked: Asked) -> list[Said]:
    """The likeliest class, and those behind it."""
    logits, _ = logits_of(asked.reading, asked.encoded)
    names = asked.names
    return [ranked(asked, _best(row, names)) for row in probabilities(logits)]


def _best(shares: np.ndarray, names: list[str]) -> list[tuple[Any, float]]:
    return [(names[i], float(shares[i])) for i in (-shares).argsort(kind="stable")]


def several_classes(asked: Asked) -> list[Said]:
    """The classes of at least the threshold (0.5), the likeliest first, at most `top_k`."""
    logits, _ = logits_of(asked.reading, asked.encoded)
    threshold = 0.5 if asked.threshold is None else asked.threshold
    most = asked.top_k if asked.top_k > 1 else None
    found = []
    for row in many.sigmoid(logits):
        best = [(name, share) for name, share in _best(row, asked.names) if share >= threshold][:most]
        found.append({PREDICTION: [name for name, _ in best], PROBABILITY: [share for _, share in best]})
    return found


def number(asked: Asked) -> list[Said]:
    """The number."""
    logits, _ = logits_of(asked.reading, asked.encoded)
    return [{PREDICTION: float(row[0])} for row in logits]


def tags(asked: Asked) -> list[Said]:
    """The tag of each word with its probability; one below the threshold is O, or nothing where there is no O."""
    shares, _ = tags_of(asked.reading, asked.encoded)
    names = asked.names
    outside = "O" if "O" in names else None
    found = []
    for row in shares:
        best = [(names[i], float(each[i])) for each, i in zip(row, row.argmax(-1), strict=True)]
        said = [name if asked.sure(name, share) else outside for name, share in best]
        found.append({PREDICTION: said, PROBABILITY: [share for _, share in best]})
    return found


def answers(asked: Asked) -> list[Said]:
    """The answer that stands in the context, where it begins, and those behind it."""
    found = []
    for best in places_of(asked.reading, asked.examples, asked.most):
        said = ranked(asked, [(each.text, each.probability) for each in best])
        found.append({PREDICTION: said.pop(PREDICTION), "start": best[0].start, **said})
    return found


def vector(asked: Asked) -> list[Said]:
    """The vector of the text, of length 1."""
    return [{"embedding": each.tolist()} for each in vectors_of(asked.reading, asked.encoded)]


def text(asked: Asked) -> list[Said]:
    """What is written, the geometric mean of its tokens' probabilities, and how many they are.

    Of an adapter that is a distribution the probability is the mean over drawn ones, with its interval.
    """
    reading = asked.reading
    sampling = Sampling(asked.max_new_tokens)
    said = written(
        reading.model, reading.processor, asked.encoded, sampling, reading.batch, reading.done, reading.tasks
    )
    quiet = replace(reading, done=int)

    def means() -> list[float]:
        return sureness(quiet, asked.encoded, [ids for _, ids in said])

    told = asked.drawn.means(reading.model, means) if asked.drawn else [{PROBABILITY: mean} for mean in means()]
    return [
        {PREDICTION: asked.sure(each, shares[PROBABILITY]), **shares, "tokens": len(ids)}
        for (each, ids), shares in zip(said, told, strict=True)
    ]


def transcript(asked: Asked) -> list[Said]:
    """What is written down of a sound, the geometric mean of its tokens' probabilities, and how many they are."""
    said = speech.transcribed(asked.reading, asked.encoded, Sampling(asked.max_new_tokens))
    means = speech.sureness(replace(asked.reading, done=int), asked.encoded, [ids for _, ids in said])
    return [
        {PREDICTION: asked.sure(each, mean), PROBABILITY: mean, "tokens": len(ids)}
        for (each, ids), mean in zip(said, means, strict=True)
    ]


def sureness(reading: Reading, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[float]:
    """Returns (Π_t p(y_t | x, y_<t))^(1/T) of each answer behind its prompt, by one pass over both."""
    import torch

    seq2seq, found = reading.model.config.is_encoder_decoder, [0.0] * len(prompts)
    features = [
        _both(prompt, ids, seq2seq) | {"row": i} for i, (prompt, ids) in enumerate(zip(prompts, answers, strict=True))
    ]
    for chosen, out, inputs in reading.outputs(features):
        labels = inputs["labels"] if seq2seq else inputs["labels"][:, 1:]
        logits = out.logits if seq2seq else out.logits[:, :-1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="none")
        means = widened(losses.view(labels.shape)).sum(1) / labels.ne(-100).sum(1)
        for i, mean in zip(chosen, means.neg().exp().tolist(), strict=True):
            found[i] = mean
    return found


def _both(prompt: list[int], ids: list[int], seq2seq: bool) -> dict[str, Any]:
    if seq2seq:
        return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": ids}
    both, seen = [*prompt, *ids], seen_in(prompt)
    found = {"input_ids": both, "attention_mask": [1] * len(both), "labels": [-100] * len(prompt) + ids}
    return found if seen is None else found | {PICTURES: seen.kept}


SAYS: dict[str, Callable[[Asked], list[Said]]] = {
    "classification": one_class,
    "image-classification": one_class,
    "audio-classification": one_class,
    "multi-label": several_classes,
    "regression": number,
    "token-classification": tags,
    "question-answering": answers,
    "embedding": vector,
    "causal-lm": text,
    "seq2seq": text,
    "speech-to-text": transcript,
}
"""What is said to rows of each task."""
SURE = tuple(task for task in SAYS if task not in ("regression", "embedding"))
"""Tasks whose predictions have probabilities, so that a threshold acts."""
RANKED = ("classification", "image-classification", "audio-classification", "multi-label", "question-answering")
"""Tasks that have further predictions behind the first."""


def encoded(
    model: Any, processor: Any, examples: Examples, most: int | None, truncate: bool, skip_bad_rows: bool
) -> tuple[Examples, Sequence[Any]]:
    """Returns (the rows that can be encoded, what the model reads of each); raises for the others unless skipped."""
    if examples.task in models.WRITTEN:
        return _prompts(model, processor, examples, most, truncate, skip_bad_rows)
    features = data.encode_all(
        examples,
        processor,
        task=examples.task,
        max_length=most,
        truncate=truncate,
        skip_bad_rows=skip_bad_rows,
        positions=models.positions(model),
    )
    there = {feature["row"] for feature in features}
    rows = [example for example in examples.rows if example.row in there]
    if examples.task == "question-answering":  # whose windows are made again, with their places
        features = rows
    return replace(examples, rows=rows), features


def _prompts(
    model: Any, processor: Any, examples: Examples, most: int | None, truncate: bool, skip_bad_rows: bool
) -> tuple[Examples, Sequence[Any]]:
    if truncate:
        raise LuthierError("truncate cuts texts to classify, tag or embed; a prompt is answered whole: leave it out.")
    bounds = (most, models.positions(model))
    longest = min((each for each in bounds if each is not None), default=None)
    rows, good, bad = [], [], []
    for example in examples.rows:
        try:
            ids = tokenised(model, processor, [example])[0]
        except LuthierError as error:
            bad.append((example.row, str(error)))
            continue
        if longest is not None and len(ids) >= longest:
            bad.append((example.row, f"a prompt of {len(ids)} tokens, and there is room for fewer than {longest}"))
            continue
        rows.append(example)
        good.append(ids)
    if bad and not (skip_bad_rows and rows):
        raise refuse(examples.source, bad, len(examples))
    return replace(examples, rows=rows), good
