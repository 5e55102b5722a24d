"""Preferences: every way of writing a pair or a judged answer means the same; what cannot be one is told."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import LuthierError
from luthier.data import encode_all, kind_of, kind_of_rows, load
from support.tiny import TEMPLATE, tokenizer

ASK = [{"role": "user", "content": "q"}]
GOOD = [{"role": "assistant", "content": "a"}]
POOR = [{"role": "assistant", "content": "b"}]
PAIRS = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": ASK, "chosen": GOOD, "rejected": POOR},
    "turns as JSON": {"prompt": json.dumps(ASK), "chosen": json.dumps(GOOD), "rejected": json.dumps(POOR)},
    "a single turn": {"prompt": "q", "chosen": GOOD[0], "rejected": POOR[0]},
    "implicit prompt": {"chosen": ASK + GOOD, "rejected": ASK + POOR},
    "whole beside a prompt": {"prompt": "q", "chosen": ASK + GOOD, "rejected": ASK + POOR},
    "beside messages": {"messages": ASK + GOOD, "chosen": ASK + GOOD, "rejected": ASK + POOR},
    "alpaca": {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    "question": {"question": "q", "chosen": "a", "rejected": "b"},
    "sharegpt": {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "b"}],
    },
    "ranking": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "openai": {"input": {"messages": ASK}, "preferred_output": GOOD, "non_preferred_output": POOR},
}
JUDGED = {
    "prompt, completion": {"prompt": "q", "completion": "a"},
    "turns": {"prompt": ASK, "completion": GOOD},
    "messages": {"messages": ASK + GOOD},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "instruction": {"instruction": "q", "output": "a"},
    "question": {"question": "q", "answer": "a"},
}


@pytest.fixture
def read(tmp_path):
    def of(*rows, **options):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load(path, preferences=True, **options)

    return of


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_mean_the_same(read, case):
    examples = read(PAIRS[case])
    (example,) = examples.rows
    assert example.messages == ASK + GOOD and example.rejected == ASK + POOR
    assert kind_of(examples.layout) == "pairs" and example.key() == read(PAIRS["texts"]).rows[0].key()
    (feature,) = encode_all(examples, tokenizer(TEMPLATE), max_length=64)
    learned = [[i for i in row["labels"] if i != -100] for row in (feature, *feature["also"])]
    assert [len(each) for each in learned] == [2, 2] and learned[0] != learned[1]


@pytest.mark.parametrize("case", PAIRS)
def test_what_stands_around_a_pair_stands_around_both_answers(read, case):
    (example,) = read(PAIRS[case] | {"system": "Be terse."}).rows
    assert example.messages[0] == example.rejected[0] == {"role": "system", "content": "Be terse."}


TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}
AROUND = {
    "history": ([["h", "g"]], lambda e: [m["content"] for m in e.messages[:2]] == ["h", "g"] and e.context >= 2),
    "tools": ([TOOL], lambda e: e.tools == [TOOL]),
    "functions": (json.dumps([TOOL["function"]]), lambda e: e.tools == [TOOL]),
    "documents": (["x"], lambda e: e.documents == [{"text": "x"}]),
    "chat_template_kwargs": ({"a": False}, lambda e: e.template == {"a": False}),
    "weight": (1, lambda e: e.masked == ()),
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize(("kind", "case"), [*(("pairs", each) for each in PAIRS), *(("judged", e) for e in JUDGED)])
def test_known_columns_mean_the_same_around_answers_that_are_compared(read, kind, case, name):
    value, there = AROUND[name]
    rows = [PAIRS[case]] if kind == "pairs" else [JUDGED[case] | {"label": label} for label in (True, False)]
    examples = read(*[row | {name: value} for row in rows])
    assert kind_of(examples.layout) == kind
    assert all(map(there, examples.rows)) and name not in examples.unread
    if kind == "pairs" and name == "history":
        assert [m["content"] for m in examples.rows[0].rejected] == ["h", "g", "q", "b"]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("case", PAIRS)
def test_a_thought_beside_two_answers_is_refused(read, case, name):
    with pytest.raises(LuthierError, match="does not say to which of them it belongs"):
        read(PAIRS[case] | {name: "Hm."})


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("case", JUDGED)
def test_a_thought_beside_a_judged_answer_is_its_own(read, case, name):
    examples = read(*[JUDGED[case] | {"label": label, name: "Hm."} for label in (True, False)])
    assert all(e.messages[-1]["reasoning_content"] == "Hm." for e in examples.rows)


@pytest.mark.parametrize("case", PAIRS)
def test_a_pair_that_is_kept_out_of_the_loss_is_refused(read, case):
    for name in ("weight", "train", "loss_mask"):
        with pytest.raises(LuthierError, match="leave the row out"):
            read(PAIRS[case] | {name: 0})


@pytest.mark.parametrize("values", [(True, False), (1, 0), ("True", "false"), (1.0, 0.0)])
@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("case", JUDGED)
def test_judged_answers(read, case, name, values):
    examples = read(*[JUDGED[case] | {name: value} for value in values])
    assert [e.wanted for e in examples.rows] == [True, False] and kind_of(examples.layout) == "judged"
    assert all(e.messages == ASK + GOOD for e in examples.rows) and examples.unread == ()


def test_of_a_judged_conversation_the_last_answer_is_judged(read):
    rows = [{"messages": ASK + GOOD + ASK + POOR, "label": label} for label in (True, False)]
    assert [e.context for e in read(*rows).rows] == [3, 3]


def test_answers_that_all_are_to_be_given_are_fine_tuned(read, tmp_path):
    examples = read({"prompt": "q", "completion": "a", "label": True})
    assert kind_of(examples.layout) == "answers" == kind_of_rows(tmp_path / "a.jsonl")
    read(PAIRS["texts"])
    assert kind_of_rows(tmp_path / "a.jsonl") == "pairs"
    assert kind_of_rows(tmp_path / "a.jsonl", "completion=chosen") == "answers"


def test_texts_share_their_opening_words(read):
    """As TRL divides them: at the last white space in common."""
    (example,) = read({"chosen": "Human: q Assistant: one", "rejected": "Human: q Assistant: other"}).rows
    assert example.messages[0]["content"] == "Human: q Assistant: "
    assert (example.messages[1]["content"], example.rejected[1]["content"]) == ("one", "other")


BAD = {
    "the same": (PAIRS["texts"] | {"rejected": "a"}, "are the same"),
    "the same, prompt implied": ({"chosen": ASK + GOOD, "rejected": ASK + GOOD}, "are the same"),
    "empty": (PAIRS["texts"] | {"rejected": ""}, "empty 'rejected'"),
    "empty turn": ({"prompt": ASK, "chosen": GOOD, "rejected": [{"role": "assistant", "content": ""}]}, "empty"),
    "no turn": (PAIRS["turns"] | {"chosen": []}, "'chosen' is an empty list"),
    "missing": ({"prompt": "q", "chosen": "a", "rejected": None}, "no 'rejected'"),
    "nothing shared": ({"chosen": "one", "rejected": "other"}, "do not open with the same words"),
    "no turn shared": ({"chosen": ASK + GOOD, "rejected": [{"role": "user", "content": "r"}, *POOR]}, "the same turns"),
    "unlike": ({"chosen": ASK + GOOD, "rejected": "b"}, "both have to hold the prompt alike"),
    "no answer": ({"prompt": "q", "chosen": GOOD, "rejected": [{"role": "tool", "content": "b"}]}, "no assistant turn"),
    "openai without a prompt": (PAIRS["openai"] | {"input": {"prompt": "q"}}, "list of 'messages'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_pair_is_told(read, case):
    row, reason = BAD[case]
    with pytest.raises(LuthierError, match="1 of 2 rows") as error:
        read(PAIRS["openai"] if "openai" in case else PAIRS["texts"], row)
    assert reason in str(error.value)


@pytest.mark.parametrize("prompt", ["other", [{"role": "system", "content": "s"}, *ASK], [*ASK, *GOOD]])
def test_a_prompt_that_whole_conversations_do_not_open_with_is_refused(read, prompt):
    whole = {"chosen": ASK + GOOD, "rejected": ASK + POOR}
    with pytest.raises(LuthierError, match="the prompt is not among the turns that"):
        read({"prompt": prompt, **whole})
    both = [{"role": "system", "content": "s"}, *ASK, *GOOD]
    (example,) = read({"prompt": ASK, "chosen": [*both, *ASK, *GOOD], "rejected": [*both, *ASK, *POOR]}).rows
    assert example.messages[0]["content"] == "s" and example.context == 4
    (example,) = read({"prompt": f"\n\nHuman: {ASK[0]['content']}\n\nAssistant:", **whole}).rows
    assert example.messages[:1] == ASK
    with pytest.raises(LuthierError, match="the prompt is not among the turns that"):
        read({"prompt": "said", "chosen": [*ASK, SAID, *ASK, *GOOD], "rejected": [*ASK, SAID, *ASK, *POOR]})


SAID = {"role": "assistant", "content": "said"}


def test_prompts_are_cut_alike(read):
    """The longer answer decides how much of the prompt both lose."""
    examples = read({"prompt": "abcdefghij", "chosen": "k", "rejected": "lmnopq"})
    with pytest.raises(LuthierError, match="with its rejected answer"):
        encode_all(examples, tokenizer(), max_length=14)
    (feature,) = encode_all(examples, tokenizer(), max_length=14, truncate=True)
    (other,) = feature["also"]
    prompts = [row["input_ids"][: row["labels"].count(-100)] for row in (feature, other)]
    assert prompts[0] == prompts[1] and len(other["input_ids"]) == 14 and feature["truncated"] == other["truncated"] > 0


def test_the_fingerprint_goes_by_both_answers(read):
    prints = {read(PAIRS["texts"] | change).fingerprint for change in ({}, {"rejected": "c"}, {"chosen": "c"})}
    assert len(prints) == 3
