"""The grid of fine-tuning and retrieval: planted facts gain in the right cells, other passages bring none."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

import luthier as lt
from luthier.core.contracts.examination import Pair
from luthier.methods.examinations.retrieval_grid import RetrievalGrid, below, nearest, passages_in
from support.asked import examples, row
from support.tiny import save_model

NAMES = [f"{a}{b}" for a in ("mo", "ta", "ri", "ku") for b in ("lan", "dos", "fer", "wim", "gax")]
TRUTH = {name: f"place{n}" for n, name in enumerate(NAMES)}
PASSAGES = [f"{name} was born in {place}." for name, place in TRUTH.items()]


def knows(some: set[str], reads: bool):
    """A model that knows where some were born, and may read it off what stands above the question."""

    def answer(prompt: str) -> str:
        *above, question = prompt.split("\n\n")
        name = question.split()[3].rstrip("?")
        told = f"{name} was born in {TRUTH[name]}." in " ".join(above)
        return f"In {TRUTH[name]}." if name in some or (reads and told) else "I cannot tell."

    return answer


def measured(before, after, **settings):
    held = [row(n, f"Where was born {name}?", TRUTH[name]) for n, name in enumerate(NAMES)]
    for n, each in enumerate(held):
        each.meta["passage"] = PASSAGES[n]
    write = lambda model, prompts, most: [model((p.messages or [])[-1]["content"]) for p in prompts]  # noqa: E731
    pair = Pair(
        lambda: [], lambda: nullcontext(before), lambda: nullcontext(after), write=write, examples={"d": examples(held)}
    )
    return RetrievalGrid(**settings).measure(pair)


def scores(report) -> list[float]:
    return [numbers["score"] for numbers in report.places.values()]


def test_planted_facts_gain_in_the_right_cells():
    half = set(NAMES[::2])
    found = measured(knows(set(), True), knows(half, True))
    assert scores(found) == [0, 1, 0.5, 1] and found.summary["found"] == 1
    assert found.null_summary["found"] == 0  # of another question's passages
    assert found.summary["gain of fine-tuning"] == 0.5 and found.summary["gain of retrieval"] == 1
    assert found.effect == pytest.approx(-0.5)
    assert found.summary["interaction, low"] < -0.5 < found.summary["interaction, high"] < 0
    assert [numbers["score"] for numbers in found.null.values()] == [0, 0, 0.5, 0.5]  # shuffled passages
    assert found.null_summary["gain of retrieval"] == 0 == found.null_summary["interaction"]
    never, always = found.places["base, closed"], found.places["base, retrieved"]  # twenty rows do not say never
    assert never["low"] == 0 and never["high"] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert always["low"] == pytest.approx(0.025 ** (1 / 20)) and always["high"] == 1
    assert found.null_summary["gain of retrieval, low"] < 0 < found.null_summary["gain of retrieval, high"]


def test_a_model_that_forgot_to_read_shows_in_the_interaction():
    found = measured(knows(set(), True), knows(set(NAMES[:10]), False))
    assert scores(found) == [0, 1, 0.5, 0.5] and found.effect == -1


def test_neither_is_needed_where_both_are_additive():
    found = measured(knows(set(), False), knows(set(NAMES[:10]), False))
    assert found.effect == 0 and found.summary["gain of retrieval"] == 0


def test_passages_of_a_file(tmp_path):
    text, rows, bad = tmp_path / "p.txt", tmp_path / "p.jsonl", tmp_path / "bad.jsonl"
    text.write_text("\n\n".join(PASSAGES), encoding="utf-8")
    rows.write_text("".join(f'{{"text": "{each}"}}\n' for each in PASSAGES), encoding="utf-8")
    assert passages_in(str(text)) == passages_in(str(rows)) == PASSAGES
    assert scores(measured(knows(set(), True), knows(set(), True), passages=str(text), k=1)) == [0, 1, 0, 1]
    bad.write_text('{"title": "a"}\n', encoding="utf-8")
    for wrong, why in ((bad, "has no passage"), (tmp_path / "none.txt", "cannot be read")):
        with pytest.raises(lt.LuthierError, match=why):
            passages_in(str(wrong))


def test_a_model_finds_the_passage_that_says_the_same(tmp_path):
    encoder = save_model(tmp_path / "encoder", "llama")
    prompts = [row(1, PASSAGES[n], "x") for n in (3, 11)]
    assert [each[0] for each in nearest(prompts, PASSAGES, 1, encoder)] == [3, 11]


def test_bm25_finds_the_passage_and_it_stands_above_the_question():
    prompts = [row(1, f"Where was born {NAMES[7]}?", "x")]
    assert nearest(prompts, PASSAGES, 2, None)[0][0] == 7
    made = below(prompts, ["Above."])[0].messages or []
    assert made[0]["content"] == f"Above.\n\nWhere was born {NAMES[7]}?"
    assert (prompts[0].messages or [])[0]["content"].startswith("Where")
