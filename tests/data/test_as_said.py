"""What rows and folders say is not passed over: keys twice, missing cells, splits by name, marks of pictures."""

from __future__ import annotations

import json
import time

import pytest

from luthier.core.errors import LuthierError
from luthier.core.json_text import Twice, loads
from luthier.data import load
from luthier.data.splits import own_split
from luthier.training.classes import check_classes

GOOD = '{"prompt": "p", "completion": "c"}'
TWICE = '{"prompt": "p", "completion": "first", "completion": "second"}'
TURN = '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
CELL = TURN[TURN.index("[") : -1].replace('"', '""')
CALL = {"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}
CALLS = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}]})


def written(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "row", "key"),
    [
        ("a.jsonl", f"{GOOD}\n{TWICE}\n", 2, "completion"),
        ("a.json", f"[{GOOD}, {TWICE}]", 2, "completion"),
        ("a.json", TWICE, 1, "completion"),
        ("a.jsonl", f"[{GOOD},\n{TWICE}]", 2, "completion"),
        ("a.jsonl", f"{TURN}\n", 1, "content"),
        ("a.csv", f'messages\n"{CELL}"\n', 2, "content"),
        ("a.jsonl", f"{CALLS}\n", 1, "x"),
    ],
)
def test_a_key_that_stands_twice_is_its_row_s_error(tmp_path, name, text, row, key):
    with pytest.raises(LuthierError, match=rf"row {row}: .*the key '{key}' stands twice"):
        load(written(tmp_path, name, text))


def test_a_key_that_stands_twice_is_found_at_once():
    text = "{" + ", ".join(f'"{i}": 0' for i in (*range(50_000), 49_999)) + "}"
    begun = time.monotonic()
    with pytest.raises(Twice, match="the key '49999' stands twice"):
        loads(text)
    assert time.monotonic() - begun < 5  # one look at all for each took a minute


def test_rows_that_stand_twice_in_a_file_are_refused(tmp_path):
    with pytest.raises(LuthierError, match="the key 'train' stands twice"):
        load(written(tmp_path, "a.json", f'{{"train": [{GOOD}], "train": [{GOOD}]}}'))


@pytest.mark.parametrize("cell", ["nan", "NaN", "<NA>", "NaT", ""])
@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t"), ("csv", ";")])
def test_a_missing_cell_is_no_answer_and_no_label(tmp_path, cell, suffix, mark):
    for column, kept in (("answer", "one"), ("label", "pos")):
        first = "question" if column == "answer" else "text"
        path = written(tmp_path, f"a.{suffix}", f"{first}{mark}{column}\nq{mark}{kept}\nr{mark}{cell}\n")
        with pytest.raises(LuthierError, match=rf"row 3: (no|empty) '{column}'"):
            load(path)
        assert len(load(path, skip_bad_rows=True)) == 1


def test_a_missing_cell_of_a_column_that_may_be_empty_says_nothing(tmp_path):
    rows = load(written(tmp_path, "a.csv", "instruction,input,output\ni,nan,o\nj,x,o\n")).rows
    assert [row.messages[0]["content"] for row in rows] == ["i", "j\n\nx"]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("train", ""),
        ("train-00000-of-00002", ""),
        ("train_2", ""),
        ("train2", ""),
        ("train_part_1", ""),
        ("train-2024-01", ""),
        ("alpaca_train", ""),
        ("train_sft", "train_sft"),
        ("train_sft-00000-of-00001", "train_sft"),
        ("train_sft_2", "train_sft"),
        ("sft-00000-of-00001", "sft"),
        ("validation_matched", "validation_matched"),
    ],
)
def test_names_of_splits(name, own):
    assert own_split(name) == own


def folder_of(tmp_path, *names):
    for name in names:
        row = json.dumps({"prompt": name, "completion": "c"})
        written(tmp_path, f"d/{name}.jsonl", row + "\n")
    return tmp_path / "d"


def asked(source, split="train"):
    return [row.messages[0]["content"] for row in load(source, split=split).rows]


def test_splits_of_names_of_their_own_are_not_mixed(tmp_path):
    folder = folder_of(tmp_path, "train_sft", "train_gen", "test_sft")
    with pytest.raises(LuthierError, match=f"several splits for train: train_gen, train_sft; .* {folder}::train_gen"):
        load(folder)
    assert asked(f"{folder}::train_sft") == asked(folder, "train_sft") == ["train_sft"]
    assert asked(folder, "test") == ["test_sft"]
    with pytest.raises(LuthierError, match="has no split 'train_s'; did you mean 'train_sft'"):
        load(f"{folder}::train_s")


SHARDS = ["train/part-00000-of-00002", "train/part-00001-of-00002"]
LANGUAGES = ["train/de-00000-of-00001", "train/en-00000-of-00001"]


@pytest.mark.parametrize(
    ("names", "found", "left"),
    [
        (("train_sft", "test_sft"), ["train_sft"], ()),
        (("train", "train_extra"), ["train"], ("file train_extra.jsonl",)),
        (("alpaca_train", "dolly_train"), ["alpaca_train", "dolly_train"], ()),
        (("train_1", "train_2"), ["train_1", "train_2"], ()),
        (("data/part-00000-of-00001",), ["data/part-00000-of-00001"], ()),
        (("train_sft/a", "train_sft/b", "test_sft/a"), ["train_sft/a", "train_sft/b"], ()),
        ((*SHARDS, "test/part-00000-of-00001"), SHARDS, ()),
        ((*LANGUAGES, "test/en-00000-of-00001"), LANGUAGES, ()),
        (("train_sft/a-00000-of-00001", "test_sft/a-00000-of-00001"), ["train_sft/a-00000-of-00001"], ()),
        (("corpus-00000-of-00001", "more"), ["more"], ("file corpus-00000-of-00001.jsonl",)),
        (("alpaca-00000-of-00001", "test", "train"), ["train"], ("file alpaca-00000-of-00001.jsonl",)),
        (("extra-00000-of-00001", "test_sft", "train_sft"), ["train_sft"], ("file extra-00000-of-00001.jsonl",)),
    ],
)
def test_files_of_a_split(tmp_path, names, found, left):
    folder = folder_of(tmp_path, *names)
    assert asked(folder) == found and load(folder).unread == left


def test_a_split_that_was_asked_for_by_its_own_name_leaves_the_others_unsaid(tmp_path):
    folder = folder_of(tmp_path, "train_sft", "train_gen", "test_sft")
    assert load(folder, split="train_sft").unread == ()


def test_splits_of_a_card_and_of_one_file_have_names_too(tmp_path):
    folder = folder_of(tmp_path, "data/train_sft-00000-of-00001", "data/train_gen-00000-of-00001")
    with pytest.raises(LuthierError, match="several splits for train"):
        load(folder)
    files = "".join(f"  - split: train_{x}\n    path: data/train_{x}-*\n" for x in ("sft", "gen"))
    written(tmp_path, "d/README.md", f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")
    with pytest.raises(LuthierError, match=f"several splits for train: .* {folder}:default:train_gen"):
        load(folder)
    assert asked(f"{folder}::train_gen") == ["data/train_gen-00000-of-00001"]
    file = written(tmp_path, "a.json", f'{{"train_sft": [{GOOD}], "test_sft": [{GOOD}]}}')
    assert len(load(file)) == len(load(f"{file}::test_sft")) == 1
    with pytest.raises(LuthierError, match="is one file, which has no parts to choose"):
        load(f"{written(tmp_path, 'a.jsonl', GOOD)}::train")


TALK = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A cat."}]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": TALK, "image": "cat.png"},
        {"prompt": "<|image_1|> What?", "completion": "A cat.", "images": ["cat.png"]},
        {"instruction": "<video> What?", "output": "A cat.", "videos": ["cat.mp4"]},
        {"question": "<audio> What?", "answer": "A cat.", "audio_path": "cat.wav"},
        {"text": "<image> A cat.", "image": "cat.png"},
        {"prompt": "<image> What?", "chosen": "A cat.", "rejected": "A dog.", "image": "cat.png"},
    ],
)
def test_a_row_that_refers_to_a_picture_is_refused(tmp_path, row):
    with pytest.raises(LuthierError, match=r"which is not read|no image file"):
        load(written(tmp_path, "a.jsonl", json.dumps(row)), preferences=True)
    plain = {name: value for name, value in row.items() if "image" not in name and "video" not in name}
    plain.pop("audio_path", None)
    assert len(load(written(tmp_path, "b.jsonl", json.dumps(plain)), preferences=True)) == 1


def rows_of(tmp_path, *rows):
    return load(written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))


@pytest.mark.parametrize("row", [{"text": "a", "label": "x"}, {"tokens": ["a"], "tags": ["O"]}])
def test_one_class_alone_is_refused(tmp_path, row):
    with pytest.raises(LuthierError, match="the only class"):
        check_classes(rows_of(tmp_path, row, row))
    name = next(reversed(row))
    other = {**row, name: "y" if name == "label" else ["y"]}
    assert check_classes(rows_of(tmp_path, row, other)) == {}


def test_one_class_is_told_of_texts_that_may_have_several(tmp_path):
    row = {"text": "a", "labels": ["x"]}
    assert list(check_classes(rows_of(tmp_path, row, row)).values()) == ["2 rows"]
    assert check_classes(rows_of(tmp_path, row, {**row, "labels": []})) == {}
    assert check_classes(rows_of(tmp_path, row, {**row, "labels": ["y"]})) == {}


def test_truth_in_two_forms_is_refused(tmp_path):
    with pytest.raises(LuthierError, match="truth values in two forms"):
        rows_of(tmp_path, {"text": "a", "label": True}, {"text": "b", "label": 0})
