"""Long texts: cut into rows of `max_length` tokens, every token learned once, the end only at the end."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.data import Example, Examples, encode, encode_all
from support.tiny_tokenizers import make

TEXT = "Natalia sold 48/2 = 24 clips in May.\n\nHow many? é 四\n" * 5


def cut(text: str, tokenizer, most: int | None, **options):
    examples = Examples([Example(row=3, text=text)], "text", "a.txt")
    return encode_all(examples, tokenizer, max_length=most, **options)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("most", [4, 7, 16, 100, 10_000])
@pytest.mark.parametrize("template", ["none", "chatml"])
def test_every_token_is_learned_once(template, most, truncate):
    tokenizer = make(template)
    (whole,) = cut(TEXT, tokenizer, None)
    pieces = cut(TEXT, tokenizer, most, truncate=truncate)
    assert all(len(piece["input_ids"]) <= most and piece["row"] == 3 for piece in pieces)
    learned = [label for piece in pieces for label in piece["labels"] if label != -100]
    assert learned == [label for label in whole["labels"] if label != -100]
    assert learned.count(tokenizer.eos_token_id) == 1 and learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]) == TEXT
    lead = [i for i, label in zip(whole["input_ids"], whole["labels"], strict=True) if label == -100]
    before = lead
    for piece in pieces:
        ids, labels = piece["input_ids"], piece["labels"]
        assert ids[: len(lead)] == lead and all(b in (-100, a) for a, b in zip(ids, labels, strict=True))
        first = next(i for i, label in enumerate(labels) if label != -100)
        assert ids[first - 1 : first] == before[-1:]  # what the first token of a piece is told from
        before = ids
        assert piece["attention_mask"] == [1] * len(ids) and piece["truncated"] == 0


def test_positions_bound_the_pieces_too():
    pieces = cut(TEXT, make("none"), 1000, positions=9)
    assert len(pieces) > 1 and max(len(piece["input_ids"]) for piece in pieces) == 9


@pytest.mark.parametrize("truncate", [False, True])
def test_one_feature_of_a_long_text_is_refused(truncate):
    with pytest.raises(LuthierError, match=r"row 3: a text of \d+ tokens is several rows of 8"):
        encode(Example(row=3, text=TEXT), make("none"), max_length=8, truncate=truncate)


def test_a_maximum_that_leaves_no_room_is_told():
    with pytest.raises(LuthierError, match="cannot be cut into pieces of 2"):
        cut(TEXT, make("none"), 2)
