"""What a row costs follows the maximum, not the row; a long text is tokenised in parts as it is whole."""

from __future__ import annotations

import random
import sys
import time
import tracemalloc

import pytest

from luthier import data
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.data import bounds, tokens
from support import tiny_tokenizers
from support.tiny import tokenizer as characters

WORDS = (
    "the",
    "quick",
    "bröwn",
    "fox",
    "12.5",
    "jumps—over",
    "日本語",
    "lazy\n\n",
    "  dog",
    "\t",
    "e\u0301",
    "🙂🙂",
    "x" * 40,
)
BIG = 4_000_000
"""Characters of a row that nothing may tokenise whole in the time that a test has."""


def prose(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


def row(**fields) -> Example:
    return Example(row=1, **fields)


def said(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("backend", tiny_tokenizers.BACKENDS)
def test_windows_of_a_text_are_the_text(backend, monkeypatch):
    made, text = tiny_tokenizers.make(None, backend), prose(3000)
    whole = tokens.tokens(text, [(0, len(text))], made, special=True)
    monkeypatch.setattr(bounds, "WINDOW", 500)
    monkeypatch.setattr(bounds, "OVERLAP", 200)
    parts = [each for ids, owner in tokens.parts_of(text, made) for each in zip(ids, owner, strict=True)]
    assert [i for i, _ in parts] == whole[0] and [learned for _, learned in parts] == [o >= 0 for o in whole[1]]


def test_pieces_of_a_long_text_are_those_that_it_has_when_it_is_tokenised_whole(monkeypatch):
    examples = Examples([row(text=prose(2000))], "text", "x")
    made = characters()
    whole = data.encode_all(examples, made, max_length=64)
    monkeypatch.setattr(sys.modules["luthier.data.encode"], "WINDOW", 500)
    monkeypatch.setattr(bounds, "WINDOW", 500)
    monkeypatch.setattr(bounds, "OVERLAP", 100)
    assert data.encode_all(examples, made, max_length=64) == whole


@pytest.mark.parametrize(
    ("example", "settings", "why"),
    [
        (row(messages=said("a b " * (BIG // 4), "yes")), {}, "characters are more than 64 tokens, the maximum is 64"),
        (row(messages=said("hello", "a b " * (BIG // 4))), {}, "the answer alone has 4,000,000 characters"),
        (row(messages=said(*["a b " * 10_000] * 100)), {}, "the answer alone has"),
        (row(messages=said("a b " * (BIG // 4), "yes")), {"truncate": True}, "64 times the maximum of 64"),
        (row(text="a b " * (BIG // 4), label="x"), {"task": "classification", "labels": ["x"]}, "a text of 4,000,000"),
        (row(messages=said("a b " * (BIG // 4), "yes")), {"task": "seq2seq"}, "a prompt of 4,000,000"),
        (row(messages=said("a", "a b " * (BIG // 4))), {"task": "seq2seq"}, "an answer of 4,000,000"),
    ],
)
def test_a_row_that_cannot_fit_costs_what_the_maximum_costs(example, settings, why):
    examples = Examples([example], "x", "x")
    template = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    made = characters(template)
    made("warm")
    began = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(LuthierError, match=why):
        data.encode_all(examples, made, max_length=64, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * BIG and time.perf_counter() - began < 5, "the row was tokenised, which takes 0.5 GB and a minute"


def test_what_a_template_leaves_out_does_not_count():
    turns = said("hello", f"<think>{'a b ' * 10_000}</think>yes")
    bounds.refuse_long(row(messages=turns), characters(), 64, truncate=False)


def test_one_word_of_any_length_is_tokenised_before_it_is_refused():
    """A tokenizer whose unknown word is one token: the characters alone tell nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert not bounds.beyond("x" * 100_000, made, 64) and bounds.beyond("x " * 100_000, made, 64)
