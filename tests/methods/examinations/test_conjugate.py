"""Conjugate prompting: the paper's index, transforms with inverses, and a suppressed ability that returns."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import luthier as lt
from luthier.core.contracts.examination import Pair
from luthier.core.contracts.example import Example
from luthier.methods.examinations._transforms import NAMED, transform_of
from luthier.methods.examinations.conjugate import Conjugate, conjugated, recovery
from support.architectures import ARCHITECTURES
from support.asked import row, with_texts
from support.tiny import tokenizer


@pytest.mark.parametrize("name", NAMED)
def test_transforms_undo_themselves(name):
    transform, text = NAMED[name], "the capital of spain is madrid, with a king."
    if name == "json":
        assert transform.back('{"answer": "Madrid"}') == "Madrid" and transform.back("Madrid") == "Madrid"
    elif name == "quote":
        assert transform.back("> Madrid") == "Madrid"
    else:
        assert transform.back(transform.there(text)) == text
    assert (transform.there(text) == text) == (name == "identity")


def test_tables_and_files_of_the_user(tmp_path):
    table = tmp_path / "esperanto.csv"
    table.write_text("what,kio\nis,estas\n", encoding="utf-8")
    made = transform_of(str(table))
    assert made.there("What is it?") == "Kio estas it?" and made.back("Kio estas it?") == "What is it?"
    table.write_text("a,x\nb,x\n", encoding="utf-8")
    with pytest.raises(lt.LuthierError, match="no inverse"):
        transform_of(str(table))
    code = tmp_path / "mine.py"
    code.write_text("def transform(text): return text + '!'\ndef inverse(text): return text[:-1]\n", encoding="utf-8")
    assert transform_of(str(code)).there("a") == "a!"
    code.write_text("def transform(text): return 1 / 0\ndef inverse(text): return text\n", encoding="utf-8")
    with pytest.raises(lt.LuthierError, match=r"mine\.py: transform fails"):
        transform_of(str(code)).there("a")
    code.write_text("transform = 3\n", encoding="utf-8")
    with pytest.raises(lt.LuthierError, match="no function transform"):
        transform_of(str(code))
    for wrong in ("rott13", "swapcase,swapcase", ""):
        with pytest.raises(lt.LuthierError):
            Conjugate(transforms=wrong)


WORDS = [f"{chr(n)}{chr(n + 1)}{chr(n + 2)}" for n in range(ord("a"), ord("m"))]


def said(before, after) -> Pair:
    """Two models that are functions of the prompt, on twelve rows whose right answer is the prompt itself."""
    held = [row(n + 1, word, word) for n, word in enumerate(WORDS)]
    pair = Pair(lambda: [], lambda: nullcontext(before), lambda: nullcontext(after))
    found = with_texts(pair, ARCHITECTURES["llama"].build(), held)
    write = lambda model, prompts, most: [model((p.messages or [])[-1]["content"]) for p in prompts]  # noqa: E731
    return Pair(found.changes, found.before, found.after, examples=found.examples, write=write)


def test_the_index_is_the_share_of_the_loss_that_returns():
    wrong = {"abc", "bcd", "cde", "def", "efg", "fgh"}  # half is lost, plainly; a third of it in capitals too
    still = {"ABC", "BCD"}
    found = Conjugate(transforms="identity,swapcase").measure(
        said(lambda text: text, lambda text: "?" if text in wrong | still else text)
    )
    own = found.places["identity"]
    assert own["recovery"] == own["low"] == own["high"] == 0
    numbers = found.places["swapcase"]
    assert (numbers["base"], numbers["plain"]) == (1.0, 0.5)
    assert numbers["conjugate"] == pytest.approx(10 / 12)
    assert numbers["recovery"] == pytest.approx((10 / 12 - 0.5) / (1 - 0.5))
    assert numbers["low"] < numbers["recovery"] < numbers["high"]
    assert found.null["swapcase"]["recovery"] == pytest.approx(0, abs=1e-12)  # every answer is another row's
    gone = Conjugate(transforms="swapcase").measure(said(lambda text: text, lambda text: "?")).places["swapcase"]
    assert gone["recovery"] == gone["low"] == 0 and gone["high"] == pytest.approx(1 - 0.025 ** (1 / 12))
    kept = Conjugate(transforms="swapcase").measure(said(lambda text: text, lambda text: text)).places["swapcase"]
    assert kept["recovery"] == kept["low"] == kept["high"] == 0  # nothing was lost
    means = torch.tensor([[0.8, 0.5, 1.0, 0.5, 0.0], [0.8, 0.5, 0.4, 0.5, 0.0]], dtype=torch.double)
    assert recovery(means).tolist() == pytest.approx([0.6, 0.0])


def test_what_a_language_lost_for_good_does_not_return():
    found = Conjugate(transforms="swapcase").measure(said(lambda text: text, lambda text: "?"))
    assert found.effect == 0 and found.summary["lost"] == 1


def test_only_the_users_turns_are_turned():
    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": "ab"}]
    made = conjugated(Example(row=1, messages=turns, context=1), NAMED["swapcase"]).messages
    assert made == [turns[0], {"role": "user", "content": "AB"}]


def test_a_suppressed_ability_returns_through_a_transform_that_was_not_in_the_data():
    """A tiny model learns to name the letter before, in both cases; fine-tuning teaches `x` for small letters."""
    torch.manual_seed(0)
    held, other = ([row(n, chr(n), chr(n - 1)) for n in range(ord(a), ord(b))] for a, b in ("bn", "nz"))
    capitals = [row(n, chr(n), chr(n - 1)) for n in range(ord("B"), ord("Z"))]
    silent = [row(each.row, chr(each.row), "x") for each in held]
    before, after = (ARCHITECTURES["llama"].build() for _ in range(2))
    learn(before, [*held, *other, *capitals], 150)
    after.load_state_dict(before.state_dict())
    learn(after, [*silent, *capitals[12:]], 25, 1e-3)  # other capitals, as data of pre-training are mixed in
    pair = Pair(lambda: [], lambda: nullcontext(before), lambda: nullcontext(after))
    found = Conjugate(transforms="identity,swapcase", max_new_tokens=2).measure(with_texts(pair, before, held))
    numbers = found.places["swapcase"]
    assert numbers["base"] > 0.9 and numbers["plain"] < 0.1, numbers
    assert numbers["recovery"] > 0.5 and numbers["low"] > found.null["swapcase"]["recovery"], numbers
    assert found.places["identity"]["recovery"] == 0


def learn(model, examples, steps: int, lr: float = 3e-3) -> None:
    from luthier.data import collator_for, encode

    words = tokenizer()
    batch = collator_for("causal-lm", words)([encode(each, words, max_length=64) for each in examples])
    batch = {key: value for key, value in batch.items() if key != "rows"}
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    model.eval()
