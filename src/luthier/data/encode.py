"""From examples to features: token ids with the answers in the loss, and labels."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from luthier.core.contracts.example import Example, Examples, last_answer
from luthier.core.errors import LuthierError, near
from luthier.data.bad import BadRow, named, refuse
from luthier.data.bounds import DEEPEST, WINDOW, refuse_long, refuse_long_text
from luthier.data.chat import Rendered, refuse_unsaid, rendered
from luthier.data.labels import (
    classified,
    contrasted,
    label_index,
    many_labels,
    question_window,
    question_windows,
    tagged_words,
)
from luthier.data.media import audio_features, image_features
from luthier.data.options import IGNORED, Feature, Options
from luthier.data.pictures import NAMES, PICTURES, check_blind, seeing, unfolded
from luthier.data.sizes import sizes_of
from luthier.data.speech import spoken
from luthier.data.template import has_template
from luthier.data.tokens import parts_of, tokens
from luthier.data.told import cut_off, doubled, hollow, noted, unlearned

Encoder = Callable[[Example, Any, Options], Feature]
ALSO = "also"
"""Where a feature keeps the rows behind it; `core.contracts.objective`, which calls it the same, loads torch."""
LONG_INPUT = 2000
"""From this many rows on, a terminal sees a progress bar."""


def encode(
    example: Example,
    tokenizer: Any,
    *,
    max_length: int | None,
    task: str = "causal-lm",
    truncate: bool = False,
) -> Feature:
    """Returns `input_ids`, `attention_mask`, `labels` (-100 outside the answers), `row` and `truncated` of
    an example.

    Every answer is in the loss with its end-of-turn or EOS token (see `luthier.data.chat` for how
    answers are found). A row of more than `max_length` tokens (None: no bound) raises; with
    `truncate` its prompt is cut on the left, after the BOS, and `truncated` counts the tokens cut.
    The last answer is never cut: a row whose answer alone is too long raises. So does a longer `text`
    row in any case, for it is several rows (`encode_all` makes them). Raises `LuthierError` naming the row; also when
    no token would be in the loss.
    """
    with named(example.row):
        return encoder_of(task)(example, tokenizer, Options(max_length, truncate=truncate))


def encode_classification(
    example: Example,
    tokenizer: Any,
    labels: list[str] | None,
    max_length: int | None,
    truncate: bool = False,
) -> Feature:
    """Returns `input_ids`, `attention_mask` (and what else the tokenizer gives), `labels`, `row` of a text
    or a pair.

    `labels` are the class names in the order of their indices; None means regression, whose label
    is a number. A row too long raises; with `truncate` the longer text is cut on the right.
    """
    with named(example.row):
        return classified(example, tokenizer, Options(max_length, labels, truncate))


def encode_seq2seq(example: Example, tokenizer: Any, max_length: int | None, truncate: bool = False) -> Feature:
    """Returns `input_ids` of the prompt, `labels` of the answer with its EOS, each within `max_length`
    tokens.

    The prompt is what stands before the last answer, turns joined by line breaks (a chat template
    plays no part). With `truncate` a long prompt is cut on the left; a long answer always raises.
    """
    with named(example.row):
        return _seq2seq(example, tokenizer, Options(max_length, truncate=truncate))


def encode_all(
    examples: Examples,
    processor: Any,
    *,
    task: str | None = None,
    max_length: int | None,
    labels: list[str] | None = None,
    truncate: bool = False,
    skip_bad_rows: bool = False,
    positions: int | None = None,
    pictures: bool = False,
) -> list[Feature]:
    """Features of all rows for `task` (the examples' own unless given; a key of `TASKS`).

    A `text` row of more than `max_length` tokens becomes several features of its number. Each but the first opens with
    what the tokenizer puts before a text and with the token before its own, out of the loss, so that every token of
    the text is learned once and the EOS stands at its end alone. A context of an extractive question that is too long
    becomes several as well, which overlap. All other tasks and layouts give a feature a row.

    `processor` is a tokenizer, an image processor or a feature extractor; `labels` are the classes
    (those of the examples unless given, so pass the training set's with a test set). `positions`
    are the tokens that the model can number, a bound beside `max_length` (`luthier.models`). `pictures` says that
    what reads the features hands those of conversations to the model; else such rows are bad ones. The
    rejected answer of a pair is the row under `also`, behind the same tokens of the prompt. One
    `LuthierError` lists every row that cannot be encoded, unless `skip_bad_rows`; raises in any
    case when none is left.
    """
    encoder = encoder_of(task or examples.task)
    options = Options(max_length, labels if labels is not None else examples.labels, truncate, positions, pictures)
    good: list[Feature] = []
    bad: list[tuple[int, str]] = []
    for example in _progress(examples.rows):
        try:
            good += features_of(example, processor, encoder, options)
        except BadRow as reason:
            bad.append((example.row, str(reason)))
    if bad and not (skip_bad_rows and good):
        raise refuse(examples.source, bad, len(examples))
    return good


def features_of(example: Example, processor: Any, encoder: Encoder, options: Options) -> Iterator[Feature]:
    """Returns the features of one row, of which a long text has many; raises `BadRow`, before the first of them."""
    if example.rejected is not None:
        return iter([_pair(example, processor, encoder, options)])
    if encoder is question_window:
        return iter(question_windows(example, processor, options))
    if encoder is not _causal or example.messages is not None:
        return iter([encoder(example, processor, options)])
    if options.most is not None and len(example.text or "") > WINDOW:
        return _long(example, processor, options.most)
    return _cut(encoder(example, processor, replace(options, max_length=None, positions=None)), options.most)


def _pair(example: Example, processor: Any, encoder: Encoder, options: Options) -> Feature:
    """The chosen answer, and under `also` the rejected one; prompts that are cut are cut alike."""
    sides = [replace(example, rejected=None), replace(example, messages=example.rejected, rejected=None, masked=())]
    found = [encoder(sides[0], processor, options), _of_rejected(sides[1], processor, encoder, options)]
    gone = max(feature["truncated"] for feature in found)
    for index, feature in enumerate(found):
        if feature["truncated"] < gone:
            most = len(feature["input_ids"]) + feature["truncated"] - gone
            found[index] = encoder(sides[index], processor, replace(options, max_length=most, positions=None))
    chosen, rejected = found
    if _before(chosen) != _before(rejected):
        raise BadRow("the chat template renders the prompt otherwise before one answer than before the other")
    return chosen | {ALSO: [rejected]}


def _of_rejected(example: Example, processor: Any, encoder: Encoder, options: Options) -> Feature:
    try:
        return encoder(example, processor, options)
    except BadRow as reason:
        raise BadRow(f"with its rejected answer: {reason}") from None


def _before(feature: Feature) -> list[int]:
    """The tokens of the prompt."""
    return feature["input_ids"][: next(i for i, label in enumerate(feature["labels"]) if label != IGNORED)]


def _cut(whole: Feature, most: int | None) -> Iterator[Feature]:
    """The pieces of a text, of at most so many tokens each."""
    ids, labels = whole["input_ids"], whole["labels"]
    if most is None or len(ids) <= most:
        return iter([whole | {"input_ids": list(ids), "labels": list(labels)}])
    lead = next(i for i, label in enumerate(labels) if label != IGNORED)
    step = most - lead - 1
    if step < 1:
        raise BadRow(f"a text of {len(ids)} tokens cannot be cut into pieces of {most}")
    return _pieces(whole, most, lead, step)


def _pieces(whole: Feature, most: int, lead: int, step: int) -> Iterator[Feature]:
    ids, labels = whole["input_ids"], whole["labels"]
    yield whole | {"input_ids": list(ids[:most]), "attention_mask": [1] * most, "labels": list(labels[:most])}
    for at in range(most, len(ids), step):
        a, b = list(ids[:lead]) + list(ids[at - 1 : at + step]), [IGNORED] * (lead + 1) + list(labels[at : at + step])
        yield whole | {"input_ids": a, "attention_mask": [1] * len(a), "labels": b}


def _long(example: Example, tokenizer: Any, most: int) -> Iterator[Feature]:
    """The pieces of a text that is tokenised part by part: memory holds 8 bytes a token of it."""
    found = rendered(example, tokenizer)
    ids, labels = array("i"), array("i")
    for part, owner in parts_of(found.text, tokenizer):
        ids.extend(part)
        labels.extend(i if learned else IGNORED for i, learned in zip(part, owner, strict=True))
    notes = noted(found.told + doubled(list(ids[:2]), tokenizer))
    return _cut({"input_ids": ids, "labels": labels, "row": example.row, "truncated": 0, **notes}, most)


def _progress(rows: Sequence[Example]) -> Any:
    if len(rows) < LONG_INPUT or not sys.stderr.isatty():
        return rows
    from rich.console import Console
    from rich.progress import track

    return track(rows, "Encoding", console=Console(stderr=True), transient=True)


def _causal(example: Example, tokenizer: Any, options: Options) -> Feature:
    if example.images and not options.pictures:
        raise BadRow("the row has pictures, which are read by train, evaluate, generate, predict and serve alone")
    if example.images:
        seeing(tokenizer)
    if example.messages is not None:
        refuse_long(example, tokenizer, options.most, options.truncate)
    found = rendered(example, tokenizer)
    chat = example.messages is not None and has_template(tokenizer)
    ids, owner = tokens(found.text, found.spans, tokenizer, special=not chat)
    if max(owner) < 0:
        raise BadRow("no token of an answer would be in the loss")
    if example.images:
        return _pictured(example, found, ids, owner, tokenizer, options)
    check_blind(ids, tokenizer)
    keep = _fitting(ids, owner, tokenizer, options, prompted=example.messages is not None)
    return {
        "input_ids": [ids[i] for i in keep],
        "attention_mask": [1] * len(keep),
        "labels": [ids[i] if owner[i] >= 0 else IGNORED for i in keep],
        "row": example.row,
        "truncated": len(ids) - len(keep),
        **noted(found.told + doubled(ids, tokenizer) + cut_off(example, len(ids) - len(keep)) + hollow(example)),
    }


def _pictured(
    example: Example, found: Rendered, ids: list[int], owner: list[int], tokenizer: Any, options: Options
) -> Feature:
    """A conversation whose pictures take the tokens that the model's processor gives them; nothing of it is cut."""
    made = unfolded(found.text, ids, owner, example.images, tokenizer)
    whole = made.ids
    if options.most is not None and len(whole) > options.most:
        more = f"{len(example.images)} picture{'s' * (len(example.images) > 1)} among them, and such a row is not cut"
        raise BadRow(f"{len(whole)} tokens, {more}; the maximum is {options.most}")
    return {
        "input_ids": whole,
        "attention_mask": [1] * len(whole),
        "labels": [token if answer >= 0 else IGNORED for token, answer in zip(whole, made.owner, strict=True)],
        "row": example.row,
        "truncated": 0,
        PICTURES: {NAMES: list(example.images), **made.columns},
        **noted(found.told + doubled(ids, tokenizer)),
    }


def _fitting(ids: list[int], owner: list[int], tokenizer: Any, options: Options, prompted: bool) -> list[int]:
    """Indices of the tokens that are kept."""
    n, most = len(ids), options.most
    if most is None or n <= most:
        return list(range(n))
    if not prompted:
        raise BadRow(f"a text of {n} tokens is several rows of {most}, which encode_all makes of it")
    if not options.truncate:
        raise BadRow(f"{n} tokens, {options.bound('truncate prompts')}")
    bos = [0] if ids[0] == tokenizer.bos_token_id and owner[0] < 0 else []
    first = n - most + len(bos)
    answer = owner.index(max(owner))
    if first > answer:
        raise BadRow(f"the answer alone has {n - answer} tokens, the maximum is {most}")
    return [*bos, *range(first, n)]


def _seq2seq(example: Example, tokenizer: Any, options: Options) -> Feature:
    if example.messages is None:
        raise BadRow("not a prompt with an answer")
    refuse_unsaid(example, "an encoder-decoder reads plain text: no chat template renders them")
    last = last_answer(example.messages)
    if last in example.masked or last < example.context:
        raise BadRow("the last answer is kept out of the loss, and an encoder-decoder learns no other")
    prompt = "\n".join(m.get("content") or "" for m in example.messages[:last])
    deepest = options.most and options.most * (DEEPEST if options.truncate else 1)
    refuse_long_text(prompt, tokenizer, deepest, "a prompt")
    refuse_long_text(example.messages[last].get("content") or "", tokenizer, options.most, "an answer")
    ids = tokenizer(prompt)["input_ids"]
    labels = tokenizer(text_target=example.messages[last].get("content") or "")["input_ids"]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in labels[-1:]:
        labels = [*labels, tokenizer.eos_token_id]
    most = options.most
    if most is not None and len(labels) > most:
        raise BadRow(f"the answer has {len(labels)} tokens, the maximum is {most}")
    cut = 0 if most is None else max(0, len(ids) - most)
    if cut and not options.truncate:
        raise BadRow(f"the prompt has {len(ids)} tokens, the maximum is {most}")
    ids = ids[cut:]
    mask = [1] * len(ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "row": example.row,
        "truncated": cut,
        **noted(unlearned(example, last)),
    }


def _image(example: Example, processor: Any, options: Options) -> Feature:
    label = label_index(example, options.labels)
    return {**image_features(example, processor), "labels": label, "row": example.row}


def _audio(example: Example, processor: Any, options: Options) -> Feature:
    label = label_index(example, options.labels)
    return {**audio_features(example, processor), "labels": label, "row": example.row}


def _regression(example: Example, tokenizer: Any, options: Options) -> Feature:
    return classified(example, tokenizer, replace(options, labels=None))


TASKS: dict[str, Encoder] = {
    "causal-lm": _causal,
    "seq2seq": _seq2seq,
    "classification": classified,
    "regression": _regression,
    "reward": _causal,
    "multi-label": many_labels,
    "token-classification": tagged_words,
    "question-answering": question_window,
    "embedding": contrasted,
    "image-classification": _image,
    "audio-classification": _audio,
    "speech-to-text": spoken,
}
"""Every task, with how one of its examples is encoded. Named after the transformers auto
classes."""


def encoder_of(task: str) -> Encoder:
    """How rows of a task are encoded; raises on an unknown one."""
    if task not in TASKS:
        raise LuthierError(f"no task {task!r}{near(task, TASKS)} There are: {', '.join(TASKS)}.")
    return TASKS[task]


def pieces_of(features: Sequence[Feature]) -> str:
    """What cutting long texts made of the rows, for names of what is kept about them; empty where none was cut."""
    more = len(features) - sizes_of(features).rows
    return f" {more} pieces" if more else ""
