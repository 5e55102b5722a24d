"""Sources: files in every form, folders of every kind, and that one bad row costs no other."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random

import pytest

from luthier.core.errors import LuthierError
from luthier.data import load, load_inputs, load_prompts, read

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def asked(examples) -> list[str]:
    return [example.messages[-2]["content"] for example in examples.rows]


# --- comma-separated rows ---------------------------------------------------------------------------


def table(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def numbers(path) -> tuple[list[str], list[int]]:
    """(the questions read, the lines of bad rows)."""
    examples = load(path, skip_bad_rows=True)
    return [example.messages[0]["content"] for example in examples.rows], [row for row, _ in examples.skipped]


STRAY = {
    "never closed": '3,"3 inch\n',
    "closed in the middle": '3,"3" inch\n',
    "closed before text": '3,"a "b" c"\n',
    "too many cells": "3,a,b\n",
    "too few cells": "3\n",
}


@pytest.mark.parametrize("case", STRAY)
@pytest.mark.parametrize("rows", [3, 1000])
def test_a_stray_quote_is_its_own_rows_error(tmp_path, case, rows):
    after = "".join(f"{i},answer {i}\n" for i in range(4, 4 + rows))
    path = table(tmp_path / "a.csv", f"question,answer\n1,one\n2,two\n{STRAY[case]}{after}")
    with pytest.raises(LuthierError, match=rf"1 of {rows + 3} rows of .*\n  row 4: "):
        load(path)
    good, bad = numbers(path)
    assert good == ["1", "2", *map(str, range(4, 4 + rows))] and bad == [4]


@pytest.mark.parametrize("apart", [1, 2, 5, 700])
def test_two_stray_quotes_do_not_melt_the_rows_between_them(tmp_path, apart):
    rows = {i: f"answer {i}" for i in range(1, 1001)}
    rows[3] = '"3 inch'
    rows[3 + apart] = f'{3 + apart} inch"'
    path = table(tmp_path / "a.csv", "question,answer\n" + "".join(f"{i},{text}\n" for i, text in rows.items()))
    good, bad = numbers(path)
    assert bad == [4] and good == [str(i) for i in rows if i != 3]


def test_two_stray_quotes_among_words(tmp_path):
    rows = [f"question {chr(97 + i)},answer {chr(97 + i)}" for i in range(12)]
    rows[2] = 'question c,"3 inch'
    rows[8] = 'question i,3 inch"'
    path = table(tmp_path / "a.csv", "question,answer\n" + "\n".join(rows) + "\n")
    good, bad = numbers(path)
    assert bad == [4] and len(good) == 11


LETTER = "Dear Bob,\nI am well, thanks.\nIt rains, it snows, it rains.\nThe sun, the moon\nRegards, Ann"
CELLS = [
    "two\nlines",
    LETTER,
    'he said "hi, you"\nand left, then',
    "name,age\nAnn,3\nBob,4\nEve,5\nJim,6\nKim,7",
    "\n\n",
    "a,b\r\nc",
    '""\n"',
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("ids", [False, True])
def test_cells_of_several_lines_stay_whole(tmp_path, cell, ids):
    rows = [[str(i) if ids else f"question {i}?", "plain"] for i in range(8)]
    rows[3][1] = cell if cell.strip() else f"x{cell}"
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([["question", "answer"], *rows])
    examples = load(table(tmp_path / "a.csv", file.getvalue()))
    assert [[m["content"] for m in e.messages] for e in examples.rows] == [
        [q, a.replace("\r\n", "\n")] for q, a in rows
    ]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_a_writer_quotes_is_read_back(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(25):
        width = draw.randint(2, 4)
        header = ["question", "answer", "c", "d"][:width]
        rows = [
            ["x" + "".join(draw.choice('ab1 ,"\n') for _ in range(draw.randint(0, 12))) for _ in header]
            for _ in range(draw.randint(1, 8))
        ]
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
        found = read(str(table(tmp_path / "a.csv", file.getvalue())))
        assert not found.bad and [list(row.values()) for _, row in found.rows] == rows


@pytest.mark.parametrize("seed", range(20))
def test_bad_rows_cost_no_others(tmp_path, seed):
    """Whatever stray quotes open cells, the rows without one are read, and only rows with one are bad."""
    draw = random.Random(seed)
    stray = set(draw.sample(range(60), draw.randint(1, 6)))
    rows = [
        f'{i},"{i} inch' if i in stray else f'{i},"answer, {i}"' if draw.random() < 0.3 else f"{i},x" for i in range(60)
    ]
    good, bad = numbers(table(tmp_path / "a.csv", "question,answer\n" + "\n".join(rows) + "\n"))
    assert good == [str(i) for i in range(60) if i not in stray] and bad == [i + 2 for i in sorted(stray)]


def test_a_malformed_header_is_told(tmp_path):
    with pytest.raises(LuthierError, match="the header is malformed"):
        load(table(tmp_path / "a.csv", 'question,"answer" x\nq,a\n'))


# --- labels ------------------------------------------------------------------------------------------


LABELS = [
    (["1.0", "0.0", "1.0"], [1.0, 0.0, 1.0], "classification", ["0", "1"]),
    (["1", "0", "1"], [1, 0, 1], "classification", ["0", "1"]),
    (["1.0", "2.5", "3.0"], [1.0, 2.5, 3.0], "regression", None),
    (["1.0", "0.0", "b"], ["1.0", "0.0", "b"], "classification", ["0.0", "1.0", "b"]),
    ([f"{i}.0" for i in range(40)], [float(i) for i in range(40)], "regression", None),
]


@pytest.mark.parametrize(("texts", "values", "task", "classes"), LABELS)
def test_numbers_mean_the_same_in_every_file(tmp_path, texts, values, task, classes):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(texts)))
    rows = [{"text": f"t{i}", "label": x} for i, x in enumerate(values)]
    (tmp_path / "a.jsonl").write_text(lines(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [load(tmp_path / f"a.{suffix}") for suffix in ("csv", "jsonl", "parquet")]
    for examples in found:
        assert (examples.task, examples.labels) == (task, classes)
        assert [e.label for e in examples.rows] == [e.label for e in found[0].rows]


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files(tmp_path, suffix, packed):
    texts = {".jsonl": lines(ROWS), ".json": json.dumps(ROWS)}
    for other, mark in ((".csv", ","), (".tsv", "\t")):
        texts[other] = "\n".join(mark.join(row) for row in [list(ROWS[0]), *(list(r.values()) for r in ROWS)])
    raw = texts[suffix].encode()
    import pyarrow

    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(pack[packed](raw) if packed in pack else pyarrow.compress(raw, "zstd", asbytes=True))
    assert asked(load(path)) == ["q0", "q1", "q2", "q3"]
    path.write_bytes(b"nothing packed")
    with pytest.raises(LuthierError, match="cannot be unpacked"):
        load(path)


def test_a_file_of_splits(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "train": ROWS[:3], "val": ROWS[3:]}, indent=1))
    assert asked(load(path)) == ["q0", "q1", "q2"]
    assert asked(load(path, split="validation")) == ["q3"]
    with pytest.raises(LuthierError, match="has no split 'test'"):
        load(path, split="test")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_column_tells_the_splits_of_a_file(tmp_path, suffix):
    import pandas

    path = tmp_path / f"a.{suffix}"
    rows = pandas.DataFrame(
        [row | {"split": name} for row, name in zip(ROWS, ["train", "val", "train", "Test"], strict=True)]
    )
    {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[suffix](
        path, **({"orient": "records", "lines": True} if suffix == "jsonl" else {"index": False})
    )
    examples = load(path, split="train")
    assert asked(examples) == ["q0", "q2"]
    assert examples.unread == ("2 of 4 rows (not of split train, by the column split)",)
    assert asked(load(path, split="test")) == asked(load(f"{path}::test")) == ["q3"]
    assert [message["content"] for row in load_prompts(f"{path}::val") for message in row.messages] == ["q1"]
    for whole in (load(path), load(path, split="train", columns=("split",)), load_prompts(path)):
        assert len(whole) == 4
    labelled = load(path, split="train", named="label=split,text=question", task="classification")
    assert len(labelled) == 4
    assert len(load_inputs(path, task="causal-lm").rows) == 4
    assert len(load_inputs(path, task="causal-lm", split="test").rows) == 1
    two = tmp_path / "two.jsonl"
    rows[rows.split != "Test"].to_json(two, orient="records", lines=True)
    assert load(two, split="test").unread == ("split",) and len(load(two, split="test")) == 3
    with pytest.raises(LuthierError, match=r"has no split 'test'.*two\.jsonl::train"):
        load(f"{two}::test")
    rows[rows.split == "train"].to_json(tmp_path / "one.jsonl", orient="records", lines=True)
    assert load(tmp_path / "one.jsonl", split="test").unread == ("split",)


@pytest.mark.parametrize("key", ["data", "rows", "examples", "instances"])
def test_a_file_with_its_rows_under_a_key(tmp_path, key):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, key: ROWS}, indent=1))
    assert asked(load(tmp_path / "a.json")) == ["q0", "q1", "q2", "q3"]


def test_one_object_is_one_row_and_a_list_one_conversation(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"messages": TURNS, "test": ["assert"]}, indent=1))
    assert load(path).rows[0].messages == TURNS
    for suffix, text in ((".json", json.dumps([TURNS, TURNS])), (".jsonl", lines([TURNS, TURNS]))):
        (tmp_path / f"b{suffix}").write_text(text)
        assert [e.messages for e in load(tmp_path / f"b{suffix}").rows] == [TURNS, TURNS]


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_plain_text_is_one_document(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes("# Title\r\n\r\nText é, “quoted”\n".encode())
    examples = load(tmp_path / f"a{suffix}")
    assert [e.text for e in examples.rows] == ["# Title\n\nText é, “quoted”\n"] and examples.layout == "text"


def test_a_pointer_of_git_lfs_is_told(tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(LuthierError, match="git lfs pull"):
        load(tmp_path / "a.parquet")


CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "level", "arguments": {"lake": "Como"}}},
    {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {"zone": "CET", "short": True}}},
]
TOOLS = [
    {"type": "function", "function": {"name": "level", "parameters": {"properties": {"lake": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "time", "parameters": {"properties": {"zone": {"type": "string"}}}}},
]


def test_parquet_and_jsonl_of_the_same_rows_are_the_same_examples(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "messages": [
                TURNS[0],
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": "198"},
                TURNS[1] | {"weight": 0},
                TURNS[0],
                TURNS[1] | {"thinking": "Hm."},
            ],
            "tools": TOOLS,
            "chat_template_kwargs": kwargs,
        }
        for call, kwargs in zip(CALLS, ({"enable_thinking": False}, {"effort": "low"}), strict=True)
    ]
    rows.append({"messages": TURNS, "tools": None, "chat_template_kwargs": None})
    (tmp_path / "a.jsonl").write_text(lines(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    wanted = load(tmp_path / "a.jsonl")
    assert wanted.rows[0].tools == TOOLS and wanted.rows[0].masked == (3,)
    assert wanted.rows[1].messages[1]["tool_calls"] == [CALLS[1]] and wanted.rows[2].tools is None
    for other in ("a.parquet", "saved"):
        found = load(tmp_path / other)
        assert found.rows == wanted.rows and found.fingerprint == wanted.fingerprint


# --- folders -------------------------------------------------------------------------------------------


def test_a_word_anywhere_in_a_name_tells_its_split(tmp_path):
    (tmp_path / "alpaca_train.jsonl").write_text(lines(ROWS[:2]))
    (tmp_path / "alpaca-test.jsonl").write_text(lines(ROWS[2:]))
    assert asked(load(tmp_path)) == ["q0", "q1"] and asked(load(tmp_path, split="test")) == ["q2", "q3"]


def test_files_of_no_split_are_training_data_or_told(tmp_path):
    (tmp_path / "data.jsonl").write_text(lines(ROWS[:2]))
    (tmp_path / "test.jsonl").write_text(lines(ROWS[2:]))
    (tmp_path / "README.md").write_text("# About\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert asked(load(tmp_path)) == ["q0", "q1"]
    (tmp_path / "train.jsonl").write_text(lines(ROWS[:1]))
    examples = load(tmp_path)
    assert asked(examples) == ["q0"] and examples.unread == ("file data.jsonl",)


@pytest.mark.parametrize("place", ["data/train-00000-of-00001.jsonl", "train/0.jsonl", "data/train/part.jsonl"])
def test_files_in_folders(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(lines(ROWS[:2]))
    other = tmp_path / place.replace("train", "test")
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text(lines(ROWS[2:]))
    assert asked(load(tmp_path)) == ["q0", "q1"] and asked(load(tmp_path, split="test")) == ["q2", "q3"]


def test_a_folder_of_texts(tmp_path):
    for name in ("a.txt", "b.md", "LICENSE.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    assert [e.text for e in load(tmp_path).rows] == ["text of a.txt\n", "text of b.md\n"]


CARD = """---
license: mit
configs:
- config_name: short
  data_files:
  - split: train
    path: short/*.jsonl
- config_name: long
  default: true
  data_files:
  - split: train
    path: ["long/one.jsonl", "long/two.jsonl"]
  - split: test
    path: long/held.jsonl
dataset_info:
- config_name: long
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
---
# A set
"""


def clone(folder, card=CARD):
    for place, labels in (("short/x", [7]), ("long/one", [1]), ("long/two", [0]), ("long/held", [1])):
        path = folder / f"{place}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines({"text": place, "label": label} for label in labels))
    (folder / "README.md").write_text(card)
    return folder


def test_a_clone_of_a_hub_set(tmp_path):
    examples = load(clone(tmp_path))
    assert [(e.text, e.label) for e in examples.rows] == [("long/one", "pos"), ("long/two", "neg")]
    assert examples.labels == ["neg", "pos"]
    assert [e.text for e in load(tmp_path, split="test").rows] == ["long/held"]
    assert [(e.text, e.label) for e in load(f"{tmp_path}:short").rows] == [("short/x", "7")]
    with pytest.raises(LuthierError, match=r"no configuration 'shrt'; did you mean 'short'"):
        load(f"{tmp_path}:shrt")
    with pytest.raises(LuthierError, match="has no split 'validation'"):
        load(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ("long/one.jsonl", ["long/one"]),
        ("[long/one.jsonl, long/two.jsonl]", ["long/one", "long/two"]),
        ("{train: 'long/*o*.jsonl', test: long/held.jsonl}", ["long/one", "long/two"]),
        ("'**/x.jsonl'", ["short/x"]),
    ],
)
def test_forms_of_data_files(tmp_path, files, texts):
    clone(tmp_path, f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert [e.text for e in load(tmp_path).rows] == texts


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("configs:\n- config_name: a\n  data_files: long/one.jsonl\n- config_name: b\n  data_files: x", "choose one"),
        ("configs:\n- data_files: ../x.jsonl", "outside its folder"),
        ("configs:\n- data_files: https://x.org/y.jsonl", "outside its folder"),
        ("configs:\n- data_files: none/*.jsonl", "no such file is here"),
        ("configs: [", "cannot be read"),
    ],
)
def test_cards_that_cannot_be_followed(tmp_path, card, reason):
    with pytest.raises(LuthierError, match=reason):
        load(clone(tmp_path, f"---\n{card}\n---\n"))


def test_folders_of_save_to_disk(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    for place in ("one", "both"):
        examples = load(tmp_path / place)
        assert [(e.text, e.label) for e in examples.rows] == [("a", "pos"), ("b", "neg")]
        assert examples.labels == ["neg", "pos"]
    assert [e.text for e in load(tmp_path / "both", split="test").rows] == ["b"]
    with pytest.raises(LuthierError, match="has no split 'validation'"):
        load(tmp_path / "both", split="validation")


@pytest.mark.parametrize(("kind", "suffix"), [("image", ".png"), ("audio", ".wav")])
@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_a_class(tmp_path, kind, suffix, splits):
    for part in ("train", "test") if splits else ("",):
        for label in ("dog", "cat"):
            place = tmp_path / part / label
            place.mkdir(parents=True)
            (place / f"1{suffix}").touch()
            (place / "notes.pdf").touch()
    examples = load(tmp_path)
    assert examples.task == f"{kind}-classification" and examples.labels == ["cat", "dog"]
    assert [e.label for e in examples.rows] == ["cat", "dog"]
    assert getattr(examples.rows[0], kind).endswith(f"cat/1{suffix}")
    assert len(examples.unread) == 2 and examples.unread[0].endswith("cat/notes.pdf")
    if splits:
        assert "/test/" in str(getattr(load(tmp_path, split="test").rows[0], kind))


def test_a_folder_of_nothing(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(LuthierError, match="holds no data file"):
        load(tmp_path)


# --- rows to answer ------------------------------------------------------------------------------------


WITHOUT = {
    "messages": {"messages": TURNS[:1]},
    "conversations": {"conversations": [{"from": "human", "value": "q"}]},
    "prompt": {"prompt": "q"},
    "prompt of turns": {"prompt": TURNS[:1]},
    "instruction": {"instruction": "q"},
    "question": {"question": "q", "answer": None},
    "source": {"source": "q"},
}
WITH = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "prompt": {"prompt": "q", "completion": "a"},
    "prompt of turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "instruction": {"instruction": "q", "output": "a"},
    "question": {"question": "q", "answer": "a"},
    "source": {"source": "q", "target": "a"},
    "preferences": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "judged": {"prompt": "q", "completion": "a", "label": False},
}


@pytest.mark.parametrize("row", [*WITHOUT.values(), *WITH.values()])
def test_the_prompt_is_what_stands_before_the_last_answer(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(lines([row | {"system": "Be terse.", "tools": [{"name": "f"}]}]))
    left: list[str] = []
    (found,) = load_prompts(path, unread=left.extend)
    assert found.messages == [{"role": "system", "content": "Be terse."}, TURNS[0]] and not left
    assert found.tools == [{"type": "function", "function": {"name": "f"}}]


def test_texts_and_named_columns_to_answer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"text": "Once"}]))
    assert load_prompts(path)[0].text == "Once"
    path.write_text(lines([{"problem": "q", "mood": "low"}]))
    left: list[str] = []
    assert load_prompts(path, named="question=problem", unread=left.extend)[0].messages == TURNS[:1]
    assert left == ["mood"]
    with pytest.raises(LuthierError, match="--columns"):
        load_prompts(path)
    path.write_text(lines([{"question": ""}, {"question": "q"}]))
    with pytest.raises(LuthierError, match="row 1: empty 'question'"):
        load_prompts(path)


def card(text: str) -> str:
    return f"---\n{text}\n---\nA data set.\n"


LABELLED = (
    "features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': neg\n          '1': pos"
)


@pytest.fixture
def written(tmp_path):
    def of(files: dict[str, str | bytes]):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return of


ROW = '{"prompt": "q", "completion": "a"}\n'
OTHER = '{"prompt": "q", "completion": "b"}\n'


def test_a_card_with_a_byte_order_mark_is_read(written):
    configs = b"\xef\xbb\xbf---\r\nconfigs:\r\n- config_name: default\r\n  data_files: a.jsonl\r\n---\r\n"
    assert [e.answer for e in load(written({"README.md": configs, "a.jsonl": ROW, "b.jsonl": OTHER})).rows] == ["a"]


@pytest.mark.parametrize("option", ["sep: '#'", "names: [prompt, completion]", "field: rows", "header: 3"])
def test_how_a_card_says_that_files_are_read_is_followed_or_refused(written, option):
    configs = card(f"configs:\n- config_name: default\n  data_files: a.jsonl\n  {option}")
    with pytest.raises(LuthierError, match="not followed here"):
        load(written({"README.md": configs, "a.jsonl": ROW}))


def test_a_card_whose_key_stands_twice(written):
    """The hub refuses such a card, and a reader that takes the last of the two would drop the first unsaid."""
    twice = card("configs:\n- config_name: default\n  data_files: a.jsonl\n  data_files: b.jsonl")
    with pytest.raises(LuthierError, match="'data_files' stands twice"):
        load(written({"README.md": twice, "a.jsonl": ROW, "b.jsonl": OTHER}))


@pytest.mark.parametrize("configs", ["", "\nconfigs:\n- config_name: default\n  data_files: train.jsonl"])
def test_names_of_classes_are_read_with_and_without_configurations(written, configs):
    rows = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
    folder = written({"README.md": card(f"dataset_info:\n  {LABELLED}{configs}"), "train.jsonl": rows})
    assert load(folder).labels == ["neg", "pos"]


def test_numbers_of_classes_are_numbers_in_files_of_text_too(written):
    folder = written({"README.md": card(f"dataset_info:\n  {LABELLED}"), "train.csv": "text,label\na,0\nb,1\nc,-1\n"})
    found = load(folder, skip_bad_rows=True)
    assert [row.label for row in found.rows] == ["neg", "pos"] and found.skipped[0][0] == 4


def test_names_of_classes_that_a_parquet_file_holds_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["neg", "pos"])
    text, word = datasets.Value("string"), datasets.Value("string")
    one = datasets.Features({"text": text, "label": label})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, one).to_parquet(tmp_path / "one.parquet")
    several = datasets.Features({"tokens": datasets.Sequence(word), "ner_tags": datasets.Sequence(label)})
    tagged = {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}
    (tmp_path / "clone").mkdir()
    datasets.Dataset.from_dict(tagged, several).to_parquet(tmp_path / "clone" / "train.parquet")
    assert load(tmp_path / "one.parquet").rows[0].label == "pos"
    assert load(tmp_path / "clone").rows[0].labels == ("neg", "pos")


@pytest.mark.parametrize("named", [
    "train-{0:05}-of-{1:05}", "train-{0:05}-of-{1:05}-{0:016x}",
    "corpus-{0:05}-of-{1:05}-{0:016x}", "lesson-{0}-of-{1}",
])  # fmt: skip
@pytest.mark.parametrize(("count", "there"), [(3, (0, 2)), (3, (1, 3)), (2, (1, 2)), (2, (0, 1))])
def test_files_that_say_that_there_are_more_are_refused(written, named, count, there):
    folder = written({f"{named.format(number, count)}.jsonl": ROW for number in there})
    if len(there) == count:
        assert len(load(folder)) == count
        return
    with pytest.raises(LuthierError, match=r"holds only 2 of 3 files of \w+-…-of-0*3\.jsonl, by the names"):
        load(folder)


def test_rows_in_two_formats_are_not_counted_twice(written):
    with pytest.raises(LuthierError, match="the same rows in two formats"):
        load(written({"train.jsonl": ROW, "train.csv": "prompt,completion\nq,a\n"}))
    with pytest.raises(LuthierError, match="the same rows in two formats"):
        load(written({"a.v1.jsonl": ROW, "a.v1.csv": "prompt,completion\nq,a\n"}))


@pytest.mark.parametrize("names", [("tickets.2023.csv", "tickets.2024.jsonl"), ("train-v1.0.csv", "train-v1.1.jsonl")])
def test_points_in_names_are_of_the_names(written, names):
    assert len(load(written({names[0]: "prompt,completion\nq,a\n", names[1]: ROW}))) == 2


def test_pictures_lie_beside_the_metadata_that_describes_them(written):
    folder = written({"train/1.png": b"x", "train/metadata.csv": "file_name,label\n1.png,cat\n"})
    (example,) = load(folder, named="image=file_name").rows
    assert example.image == str(folder / "train" / "1.png")


def test_a_folder_of_folders_is_told_what_lies_deeper(written):
    with pytest.raises(LuthierError, match=r"Deeper in it is de/train\.jsonl"):
        load(written({"en/train.jsonl": ROW, "de/train.jsonl": ROW}))


def test_a_list_of_rows_is_read_by_whatever_suffix(written):
    whole = "[\n" + ROW.strip() + ",\n" + OTHER.strip() + "\n]\n"
    assert [e.answer for e in load(written({"a.jsonl": whole}) / "a.jsonl").rows] == ["a", "b"]
