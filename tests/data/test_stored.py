"""Features on disk are those in memory, whoever encodes them, and are encoded once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from luthier import data
from luthier.core import cached
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.data import kept, stored
from support.tiny import tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "MANY", 1)
    monkeypatch.setattr(stored, "CHUNK", 7)
    monkeypatch.setattr(stored, "BATCH", 100)
    return tmp_path / "cache"


def conversation(i: int) -> Example:
    turns = [{"role": "user", "content": f"q{i}" * (1 + i % 5)}, {"role": "assistant", "content": "a" * (1 + i % 30)}]
    return Example(row=i, messages=turns, template={"unknown": i} if i % 3 == 0 else {})


def preference(i: int) -> Example:
    chosen = conversation(i)
    rejected = [chosen.messages[0], {"role": "assistant", "content": "b" * (1 + i % 23)}]
    return dataclasses.replace(chosen, rejected=rejected)


KINDS = {
    "chat": ([conversation(i) for i in range(1, 60)], "causal-lm", {}),
    "cut prompts": ([conversation(i) for i in range(1, 60)], "causal-lm", {"truncate": True}),
    "texts": ([Example(row=i, text="some text " * i) for i in range(1, 40)], "causal-lm", {}),
    "classes": ([Example(row=i, text=f"t{i}", label="ab"[i % 2]) for i in range(1, 40)], "classification", {}),
    "measures": ([Example(row=i, text=f"t{i}", label=i / 3) for i in range(1, 40)], "regression", {}),
    "preferences": ([preference(i) for i in range(1, 60)], "causal-lm", {"truncate": True}),
    "pairs": ([conversation(i) for i in range(1, 60)], "seq2seq", {}),
}


def both(kind: str, made=None):
    rows, task, settings = KINDS[kind]
    examples = Examples(rows, "x", "x", labels=["a", "b"] if kind == "classes" else None, task=task, fingerprint=kind)
    options = {"max_length": 40, "skip_bad_rows": True, **settings}
    made = made or tokenizer(TEMPLATE)
    return data.encode_all(examples, made, **options), data.encode_kept(examples, made, **options)


def numpys(feature: dict) -> dict:
    """A feature as a tokenizer with `return_tensors="np"` gives it."""
    told = {name: value for name, value in feature.items() if name not in NUMBERS}
    return {name: np.asarray(feature[name])[()] for name in NUMBERS if name in feature} | told


NUMBERS = ("input_ids", "attention_mask", "labels", "row", "truncated")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_what_is_encoded(kind, workers, monkeypatch):
    monkeypatch.setenv("LUTHIER_WORKERS", workers)
    plain, held = both(kind)
    assert isinstance(held, stored.Stored) and len(plain) > 20 and list(held) == plain
    assert [held[i] for i in (5, -1, 0)] == [plain[i] for i in (5, -1, 0)] and held[3:6] == plain[3:6]
    assert data.told(held) == data.told(plain)
    assert data.digest(held) == data.digest(plain) == data.digest(map(numpys, plain))
    for name in ("row", "length", "work", "width", "learned", "cut"):
        assert getattr(held.sizes(), name).tolist() == getattr(data.sizes_of(plain), name).tolist(), name
    changed = data.each_with(held, lambda feature: {"row": feature["row"] + 1})
    assert [each["row"] for each in changed] == [each["row"] + 1 for each in plain]
    with pytest.raises(IndexError):
        held[len(plain)]


def test_the_same_rows_are_encoded_once(monkeypatch):
    both("chat")
    monkeypatch.setattr(kept, "features_of", lambda *_: pytest.fail("it was encoded again"))
    both("chat")


@pytest.mark.parametrize("change", ["length", "template", "rows", "special"])
def test_other_rows_settings_or_tokens_are_encoded_anew(change, monkeypatch, cache):
    examples = Examples(KINDS["chat"][0], "x", "x", fingerprint="chat")
    made = tokenizer(TEMPLATE)
    data.encode_kept(examples, made, max_length=100)
    if change == "special":
        made.add_special_tokens({"additional_special_tokens": ["<new>"]})
    if change == "rows":
        examples = Examples(examples.rows[:30], "x", "x", fingerprint="less")
    made = tokenizer(TEMPLATE.replace("<", "[")) if change == "template" else made
    data.encode_kept(examples, made, max_length=99 if change == "length" else 100)
    assert len([each for each in cached.listed() if each.kind == "encoded"]) == 2


def test_bad_rows_are_told_as_they_are_in_memory_also_from_the_cache():
    rows = [*KINDS["texts"][0][:5], Example(row=9, messages=[{"role": "assistant", "content": "a" * 50}])]
    examples = Examples(rows, "x", "x")
    told = []
    for encode in (data.encode_all, data.encode_kept, data.encode_kept):
        with pytest.raises(LuthierError) as error:
            encode(examples, tokenizer(TEMPLATE), max_length=40)
        told.append(str(error.value))
    assert len(set(told)) == 1 and "row 9" in told[0]


def test_a_damaged_entry_is_told_and_made_again(cache):
    plain, held = both("chat")
    file = held.folder / stored.FEATURES
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="damaged .*bytes and had"):
        assert list(both("chat")[1]) == plain


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_rows_that_are_cleared_or_damaged_while_they_are_read_are_told(cache, harm):
    held = both("chat")[1]
    if harm == "gone":
        cached.remove(next(each for each in cached.listed() if each.kind == "encoded"))
    else:
        (held.folder / stored.FEATURES).write_bytes(b"no Arrow")
    with pytest.raises(LuthierError, match="start again"):
        held[0]


def test_a_process_that_dies_is_told(monkeypatch):
    import os

    monkeypatch.setenv("LUTHIER_WORKERS", "2")
    monkeypatch.setattr(kept, "features_of", lambda *_: os._exit(9))
    with pytest.raises(LuthierError, match="LUTHIER_WORKERS=1"):
        data.encode_kept(Examples(KINDS["chat"][0], "x", "x"), tokenizer(TEMPLATE), max_length=40)
    assert not [each for each in cached.listed() if each.kind == "encoded"]


@pytest.mark.parametrize("told", ["0", "many", "-1"])
def test_workers_are_a_number(told, monkeypatch):
    monkeypatch.setenv("LUTHIER_WORKERS", told)
    with pytest.raises(LuthierError, match="LUTHIER_WORKERS"):
        both("chat")


def test_rows_in_memory_need_no_cache(cache):
    cache.write_text("no folder can be made here")
    plain, held = both("chat")
    assert isinstance(held, list) and held == plain


def test_the_cache_says_what_it_holds(cache):
    both("classes")
    (entry,) = [each for each in cached.listed() if each.kind == "encoded"]
    assert entry.about["rows"] == 39 and entry.about["task"] == "classification" and entry.bytes > 100
    assert json.dumps(dict(entry.about))
