"""From examples with labels to features: the class of a text, its classes, the tags of its words, places in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.contracts.example import Example
from luthier.core.errors import near
from luthier.data.bad import BadRow
from luthier.data.bounds import DEEPEST, refuse_long_text
from luthier.data.options import IGNORED, Feature, Options
from luthier.data.sizes import each_with

CLASSES = "classes"
"""The feature of a text that may have several classes: 1 for each that it has, else 0; in a batch it is `labels`."""
END = "end"
"""The feature of the last token of an answer, whose first is `labels`; in a batch they are the model's positions."""
STRIDE = 128
"""Tokens of a context that two windows share, as SQuAD is read; a quarter of a window where that is less."""
WINDOW = 384
"""Tokens of a window with its question, where neither the model nor the run has a bound."""


def classified(example: Example, tokenizer: Any, options: Options) -> Feature:
    """Returns a text, or a pair of them, with the index of its class."""
    if example.text is None:
        raise BadRow("no text to classify")
    label = label_index(example, options.labels)
    return {**_tokens(tokenizer, options, example.text, example.text_pair), "labels": label, "row": example.row}


def many_labels(example: Example, tokenizer: Any, options: Options) -> Feature:
    """Returns a text, or a pair of them, with a 1 for each class that it has."""
    if example.text is None or example.labels is None:
        raise BadRow("no text with a list of classes")
    known = options.labels or []
    places = [_place(name, known) for name in example.labels]
    classes = [int(i in places) for i in range(len(known))]
    found = _tokens(tokenizer, options, example.text, example.text_pair)
    return {**found, CLASSES: classes, "labels": len(places), "row": example.row}


def _tokens(tokenizer: Any, options: Options, text: str, pair: str | None = None) -> Feature:
    """What the tokenizer makes of a text or a pair, cut on the right where that is allowed, and how much was cut."""
    deepest = options.most and options.most * (DEEPEST if options.truncate else 1)
    refuse_long_text(text, tokenizer, deepest, "a text")
    refuse_long_text(pair or "", tokenizer, deepest, "a second text")
    out = dict(tokenizer(text, pair))
    n, most = len(out["input_ids"]), options.most
    cut = most is not None and n > most
    if cut and not options.truncate:
        raise BadRow(f"{n} tokens, {options.bound('truncate')}")
    if cut:
        out = dict(tokenizer(text, pair, truncation=True, max_length=most))
    return {**out, "truncated": n - len(out["input_ids"])}


def label_index(example: Example, labels: list[str] | None) -> int | float:
    """Index of the label among the classes, or the label as a number when there are none."""
    if labels is None:
        if isinstance(example.label, int | float):
            return float(example.label)
        raise BadRow(f"label {example.label!r} is not a number")
    return _place(str(example.label), labels)


def _place(name: str, labels: list[str]) -> int:
    if name not in labels and name in ("true", "false"):  # classes of earlier versions, as pandas wrote them
        name = next((each for each in labels if each.lower() == name), name)
    if name not in labels:
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        raise BadRow(f"label {name!r} is none of the {len(labels)} classes ({shown}){near(name, labels) or ''}")
    return labels.index(name)


def tagged_words(example: Example, tokenizer: Any, options: Options) -> Feature:
    """Returns the words, joined by spaces, with the index of each one's tag on its first token; -100 elsewhere."""
    if example.tokens is None or example.labels is None:
        raise BadRow("no words with a tag for each")
    places = [_place(tag, options.labels or []) for tag in example.labels]
    out, firsts = words_of(example.tokens, tokenizer)
    n, most = len(out["input_ids"]), options.most
    if most is not None and n > most:
        if not options.truncate:
            raise BadRow(f"{n} tokens, {options.bound('truncate')}")
        out, firsts = words_of(example.tokens, tokenizer, most)
    labels = [IGNORED] * len(out["input_ids"])
    for first, place in zip(firsts, places, strict=False):  # the words behind a cut have no token
        labels[first] = place
    return {**out, "labels": labels, "row": example.row, "truncated": n - len(labels)}


def words_of(words: Sequence[str], tokenizer: Any, most: int | None = None) -> tuple[Feature, list[int]]:
    """Returns (what the tokenizer makes of words joined by spaces, the place of each word's first token).

    With `most`, as many tokens, and the words that begin within them.
    """
    text, starts = " ".join(words), [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    cut = {} if most is None else {"truncation": True, "max_length": most}
    out = dict(tokenizer(text, return_offsets_mapping=True, **cut))
    spans = [(i, a, b) for i, (a, b) in enumerate(out.pop("offset_mapping")) if b > a]
    firsts, at = [], 0
    for number, (start, word) in enumerate(zip(starts, words, strict=False), 1):
        while at < len(spans) and spans[at][2] <= start:
            at += 1
        if at == len(spans) and most is not None:
            break
        if at == len(spans) or spans[at][1] >= start + len(word):
            raise BadRow(f"the tokenizer makes no token of the word {word[:40]!r} ({number})")
        firsts.append(spans[at][0])
    return out, firsts


def question_window(example: Example, tokenizer: Any, options: Options) -> Feature:
    """Returns the question with its context, where they are one window."""
    found = question_windows(example, tokenizer, options)
    if len(found) > 1:
        raise BadRow(f"the context is {len(found)} windows, which encode_all makes of it")
    return found[0]


def question_windows(example: Example, tokenizer: Any, options: Options) -> list[Feature]:
    """Returns the windows of a question with its context; the labels are the first and last token of the first answer,
    and the first token of all where a window does not hold it whole."""
    found = []
    for window, spans in windows(example, tokenizer, options):
        first, last = _held(example.spans or (), spans)
        ids = window["input_ids"]
        if last < 0:
            first = last = empty_place(ids, tokenizer)
        found.append({**window, "labels": first, END: last, "row": example.row, "truncated": 0})
    return found


def windows(example: Example, tokenizer: Any, options: Options) -> list[tuple[Feature, list[tuple[int, int] | None]]]:
    """Returns (the model's inputs, the place of each token in the context, None of those outside it) of each window."""
    if example.text is None or example.text_pair is None:
        raise BadRow("no question with a context")
    most = options.most or WINDOW
    room = most - len(tokenizer(example.text, "")["input_ids"])
    if room < most // 4:
        raise BadRow(f"the question leaves {max(room, 0)} of {most} tokens for its context, expected a quarter")
    out = tokenizer(
        example.text,
        example.text_pair,
        truncation="only_second",
        max_length=most,
        stride=min(STRIDE, room // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in out if name not in ("offset_mapping", "overflow_to_sample_mapping")]
    found = []
    for i, spans in enumerate(out["offset_mapping"]):
        sides = out.sequence_ids(i)
        places = [tuple(span) if side == 1 else None for span, side in zip(spans, sides, strict=True)]
        found.append(({name: out[name][i] for name in names}, places))
    return found


def _held(answers: Sequence[tuple[int, str]], spans: Sequence[tuple[int, int] | None]) -> tuple[int, int]:
    """The first and last token of the first answer; (0, -1) where there is none, or not whole in the window."""
    if not answers:
        return 0, -1
    begin, end = answers[0][0], answers[0][0] + len(answers[0][1])
    inside = [i for i, span in enumerate(spans) if span is not None and span[0] < end and span[1] > begin]
    whole = inside and spans[inside[0]][0] <= begin and spans[inside[-1]][1] >= end  # type: ignore[index]
    return (inside[0], inside[-1]) if whole else (0, -1)


def empty_place(ids: Sequence[int], tokenizer: Any) -> int:
    """Returns the token that stands for no answer: the tokenizer's [CLS], else the first."""
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0


def contrasted(example: Example, tokenizer: Any, options: Options) -> Feature:
    """Returns a text, and under `also` what belongs near it and what does not, in this order."""
    if example.texts is None:
        raise BadRow("no text with one that belongs near it")
    rows = [{**_tokens(tokenizer, options, text), "labels": 0, "row": example.row} for text in example.texts]
    return rows[0] | {"also": rows[1:]}


def labels_in_order(features: Sequence[Feature], labels: list[str] | None, config: Any) -> Sequence[Feature]:
    """Returns the features with the label indices of the model, which may keep an order of its own."""
    if labels is None:
        return features
    order = [config.label2id[name] for name in labels]

    def ordered(feature: Feature) -> Feature:
        if CLASSES in feature:
            there = {order[i] for i, one in enumerate(feature[CLASSES]) if one}
            return {CLASSES: [int(i in there) for i in range(config.num_labels)]}
        found = feature["labels"]
        if isinstance(found, list):
            return {"labels": [i if i == IGNORED else order[i] for i in found]}
        return {"labels": order[found]}

    return each_with(features, ordered)
