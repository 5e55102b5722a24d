"""Text from tokens: whole characters, and nothing of a text that stops."""

from __future__ import annotations

import random

import pytest

from luthier.engine.text import Reader, decoded, token_texts


@pytest.fixture(scope="module")
def bytewise():
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)} | {"<end>": 256}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


@pytest.fixture(scope="module")
def spaced():
    """Words that carry the space before them, and a decoder that drops the first one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁a", "▁word", "▁and", "more", "."]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def chunks(reader: Reader, ids: list[int]) -> list[str]:
    """What is shown token by token, until it stops, and what was held back."""
    shown = []
    for token in ids:
        shown.append(reader.add(token))
        if reader.stopped:
            break
    return [*shown, reader.rest()]


TEXT = "naïve 日本語 🎻 – Ünïcödé, plain."


def test_characters_come_whole(bytewise):
    ids = bytewise.encode(TEXT)
    assert len(ids) == len(TEXT.encode())
    shown = chunks(Reader(bytewise, bytewise.encode("so: "), []), ids)
    assert "".join(shown) == TEXT
    assert not any("\ufffd" in chunk for chunk in shown)
    assert shown.count("") == len(ids) - len(TEXT) + 1


def test_bytes_that_are_no_character_do_not_wait_for_ever(bytewise):
    byte = bytewise.encode("日")[0]
    reader = Reader(bytewise, [], [])
    assert any(reader.add(byte) for _ in range(12))
    cut = chunks(Reader(bytewise, [], []), bytewise.encode("a日")[:-1])
    assert "".join(cut) == decoded(bytewise, bytewise.encode("a日")[:-1])


def test_a_prompt_that_ends_within_a_character(bytewise):
    ids = bytewise.encode("日本")
    assert "".join(chunks(Reader(bytewise, ids[:1], []), ids[1:])).endswith("本")


def test_the_space_before_a_word_stays(spaced):
    ids = [1, 2, 3, 4, 5]
    assert "".join(chunks(Reader(spaced, ids[:1], []), ids[1:])) == " word andmore."
    assert "".join(chunks(Reader(spaced, [], []), ids)) == decoded(spaced, ids) == "a word andmore."
    assert token_texts(spaced)(2) == " word"


@pytest.mark.parametrize("seed", range(20))
def test_stop_texts_across_tokens(bytewise, seed):
    """The answer ends where the first stop text does that is complete; no part of it was shown before."""
    draw = random.Random(seed)
    text = "".join(draw.choices("abé", k=60))
    stops = ["".join(draw.choices("abé", k=draw.randint(2, 5))) for _ in range(3)]
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    shown = chunks(Reader(bytewise, [], stops), bytewise.encode(text))
    last = min((end for end, _ in ends), default=None)
    starts = [start for end, start in ends if end == last]
    assert "".join(shown) == text[: min(starts, default=None)]


def test_special_tokens_are_not_shown(bytewise):
    assert "".join(chunks(Reader(bytewise, [], []), [*bytewise.encode("ab"), 256])) == "ab"
    assert token_texts(bytewise)(256) == "<end>"
