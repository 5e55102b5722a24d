"""The same rows in every kind of file give the same tokens, whatever columns stand around them."""

from __future__ import annotations

import csv
import functools
import json

import pytest

from luthier.core.errors import LuthierError
from luthier.data import encode_all, load
from support.tiny_tokenizers import make

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% if documents %}{{ '<|im_start|>papers\n' + documents | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<tool>' + c.function.name + ' ' + c.function.arguments | tojson + '</tool>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + (mood or '') }}{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "level", "description": "LEVELQ", "parameters": {"properties": {"a": 1}}},
    },
    {
        "type": "function",
        "function": {"name": "time", "description": "TIMEQ", "parameters": {"properties": {"b": "x"}}},
    },
]
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "level", "arguments": {"lake": "Como"}}},
    {"id": "c2", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET", "day": null}'}},
]
ASK, ANSWER = {"role": "user", "content": "ASKQ"}, {"role": "assistant", "content": "ANSWERQ"}
TALK = [ASK, ANSWER | {"weight": 0}, ASK, {"role": "assistant", "content": None, "tool_calls": [CALLS[0]]},
        {"role": "tool", "content": "198", "tool_call_id": "c1"}, ANSWER | {"reasoning_content": "THINKQ"}]  # fmt: skip
SHARED = [{"from": "human", "value": "ASKQ"}, {"from": "function_call", "value": json.dumps(CALLS[1]["function"])},
          {"from": "observation", "value": "12"}, {"from": "gpt", "value": "ANSWERQ", "train": True}]  # fmt: skip
LAYOUTS = {
    "messages": ({"messages": TALK}, {"messages": [ASK, ANSWER]}),
    "conversations": ({"conversations": SHARED}, {"conversations": [SHARED[0], SHARED[3]]}),
    "prompt-completion": ({"prompt": "ASKQ", "completion": "ANSWERQ"},) * 2,
    "prompt-completion of turns": ({"prompt": [ASK], "completion": TALK[3:]},
                                   {"prompt": [ASK], "completion": [ANSWER]}),
    "instruction": ({"instruction": "ASKQ", "input": "INQ", "output": "ANSWERQ"},
                    {"instruction": "ASKQ", "input": None, "output": "ANSWERQ"}),
    "question-answer": ({"question": "ASKQ", "answer": "ANSWERQ"},) * 2,
    "source-target": ({"source": "ASKQ", "target": "ANSWERQ"},) * 2,
}  # fmt: skip
AROUND = {
    "system": ("SYSQ", None),
    "history": ([["HASKQ", "HANSQ"]], []),
    "tools": (TOOLS, None),
    "documents": ([{"title": "t", "text": "PAPERQ"}], None),
    "chat_template_kwargs": ({"mood": "MOODQ"}, {"other": None}),
    "weight": (1, None),
    "origin": ("web", None),
}
"""Columns that any of them may have, filled and empty."""
SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet", "saved")


def text_of(value) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def written(folder, rows, suffix):
    path = folder / f"rows.{suffix}"
    if suffix == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "json":
        path.write_text(json.dumps({"train": rows}))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "tsv":
        table = [list(rows[0]), *([text_of(cell) for cell in row.values()] for row in rows)]
        path.write_text("".join("\t".join(cells) + "\n" for cells in table))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([list(rows[0]), *([text_of(cell) for cell in row.values()] for row in rows)])
    return path


@functools.cache
def tokenizer():
    return make(TEMPLATE)


def features(path):
    examples = load(path)
    found = encode_all(examples, tokenizer(), max_length=None)
    return [(each["input_ids"], each["labels"], each.get("told")) for each in found], examples.unread


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_the_same_tokens_in_every_file(tmp_path, layout):
    rows = [row | {name: values[i] for name, values in AROUND.items()} for i, row in enumerate(LAYOUTS[layout])]
    found = {suffix: features(written(tmp_path, rows, suffix)) for suffix in SUFFIXES}
    ((ids, labels, _), _), unread = found["jsonl"]
    text = tokenizer().decode(ids)
    assert all(word in text for word in ("SYSQ", "HASKQ", "LEVELQ", "TIMEQ", "PAPERQ", "MOODQ", "ASKQ", "ANSWERQ"))
    learned = tokenizer().decode([label for label in labels if label != -100])
    assert "ANSWERQ" in learned and not any(word in learned for word in ("SYSQ", "HANSQ", "PAPERQ", "LEVELQ"))
    assert unread == ("origin",) and "null" not in learned.replace('"day": null', "")
    assert all(other == found["jsonl"] for other in found.values()), [s for s in SUFFIXES if found[s] != found["jsonl"]]


LABELS = {
    "numbers": ({"label": 1.0}, {"label": 0.0}),
    "truths": ({"label": True}, {"label": False}),
    "words": ({"labels": "very good"}, {"labels": "bad"}),
    "measures": ({"label": 0.5}, {"label": 2.0}),
    "several": ({"labels": ["a", "b"]}, {"labels": []}),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_the_same_in_every_file(tmp_path, case):
    rows = [{"text": f"t{i}", **labels} for i, labels in enumerate(LABELS[case])]
    found = [load(written(tmp_path, rows, suffix)) for suffix in SUFFIXES]
    told = [(each.task, each.labels, [(row.label, row.labels) for row in each.rows]) for each in found]
    assert told == told[:1] * len(SUFFIXES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_judgements_and_pairs_are_the_same_in_every_file(tmp_path, suffix):
    judged = [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "r", "completion": "b", "label": False}]
    path = written(tmp_path, judged, suffix)
    with pytest.raises(LuthierError, match="KTO"):
        load(path)
    assert [row.wanted for row in load(path, preferences=True).rows] == [True, False]
    (tmp_path / "pairs").mkdir()
    pairs = [{"prompt": [ASK], "chosen": [ANSWER], "rejected": TALK[3:4], "tools": TOOLS, "score_chosen": 5}]
    examples = load(written(tmp_path / "pairs", pairs, suffix), preferences=True)
    assert examples.rows[0].rejected[-1]["tool_calls"][0]["function"] == CALLS[0]["function"]
    assert examples.rows[0].tools == TOOLS and examples.unread == ("score_chosen",)
