"""Files as other programs write them: separators, encodings, tables by column, lists in Python's own writing."""

from __future__ import annotations

import csv
import json

import pytest

from luthier import data
from luthier.core.errors import LuthierError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": 'it\'s "a"'}]


def loaded(path, text: str | bytes, **settings):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return data.load(str(path), **settings)


def said(examples) -> list[tuple[str, str]]:
    return [(row.messages[0]["content"], row.messages[-1]["content"]) for row in examples.rows]


@pytest.mark.parametrize("mark", [",", ";", "|", "\t"])
def test_cells_are_separated_as_the_header_s_are(tmp_path, mark):
    lines = [f"prompt{mark} completion", f'1{mark}"a{mark} b"', f"2{mark}c"]
    assert said(loaded(tmp_path / "rows.csv", "\n".join(lines))) == [("1", f"a{mark} b"), ("2", "c")]
    stray = "\n".join([*lines, f'3{mark}"open', f"4{mark}d"])
    with pytest.raises(LuthierError, match="row 4: malformed: a quote that opens a cell is never closed"):
        loaded(tmp_path / "stray.csv", stray)
    kept = said(loaded(tmp_path / "stray.csv", stray, skip_bad_rows=True))
    assert kept == [("1", f"a{mark} b"), ("2", "c"), ("4", "d")]


def test_a_decimal_comma_is_a_point_where_semicolons_separate(tmp_path):
    found = loaded(tmp_path / "rows.csv", "text;label\ngood, 4,5;4,5\nbad;-1\nmeh;\n", skip_bad_rows=True)
    assert found.task == "regression" and [row.label for row in found.rows] == [4.5, -1.0]
    assert found.rows[0].text == "good, 4,5"
    words = loaded(tmp_path / "words.csv", "text;label\na;4,5\nb;x,y\n")
    assert words.labels == ["4,5", "x,y"]


def test_a_comma_that_is_no_decimal_one_stays(tmp_path):
    asked = loaded(tmp_path / "asked.csv", "prompt;completion\nhow many;1,234\nand;2\n")
    assert said(asked) == [("how many", "1,234"), ("and", "2")]
    with pytest.raises(LuthierError, match="'0,2', which reads as several classes"):
        loaded(tmp_path / "several.csv", "text;labels\na;0,2\nb;1\nc;1,2\n")
    scored = loaded(tmp_path / "scored.csv", "text;Score\n1,5;4,5\n2,5;3\n", named="label=Score")
    assert [(row.text, row.label) for row in scored.rows] == [("1,5", 4.5), ("2,5", 3.0)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name, text", [
    ("rows.csv", "prompt,completion\nä,b\n"),
    ("rows.tsv", "prompt\tcompletion\nä\tb"),
    ("rows.jsonl", '{"prompt": "ä", "completion": "b"}\n'),
])  # fmt: skip
def test_marks_of_an_encoding_are_read(tmp_path, name, text, encoding):
    assert said(loaded(tmp_path / name, text.encode(encoding))) == [("ä", "b")]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tabs_between_cells_in_quotes_are_read_as_they_were_written(tmp_path, quoting):
    rows = [["prompt", "completion"], ['say "a"', "b\tc"], ["d", '"e"'], ["f\ng", "h"], ["i", "j"]]
    with (tmp_path / "rows.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerows(rows)
    assert said(data.load(str(tmp_path / "rows.tsv"))) == [tuple(row) for row in rows[1:]]


@pytest.mark.parametrize("cells", [('"a"', 'b"'), ('"a', 'b"c'), ('"', '""'), ('"a" b', '"c"'), ('x ""y""', "z")])
def test_quotes_in_plain_cells_between_tabs_are_characters(tmp_path, cells):
    rows = [cells, ("f", "g"), ('"open', "h"), ("i", 'close"')]
    text = "".join("\t".join(row) + "\n" for row in [("prompt", "completion"), *rows])
    assert said(loaded(tmp_path / "rows.tsv", text)) == list(rows)


@pytest.mark.parametrize(("name", "mark"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_a_header_among_the_rows_is_no_row(tmp_path, name, mark):
    once = f"prompt{mark}completion\nq{mark}a\n"
    with pytest.raises(LuthierError, match="row 3: it is the header once more"):
        loaded(tmp_path / name, once + once)
    assert said(loaded(tmp_path / name, once + once, skip_bad_rows=True)) == [("q", "a")] * 2


def test_half_of_utf_16_is_told(tmp_path):
    with pytest.raises(LuthierError, match="begins as UTF-16 and is not UTF-16"):
        loaded(tmp_path / "rows.csv", b"\xff\xfea\x00b")


ROW = {"prompt": "q", "completion": "a"}


def test_rows_beside_splits_are_not_left_out(tmp_path):
    with pytest.raises(LuthierError, match="under train, which are splits, and under extra"):
        loaded(tmp_path / "rows.json", json.dumps({"train": [ROW], "extra": [ROW]}))


@pytest.mark.parametrize("value, count", [
    ({"train": [ROW], "test": []}, 1),
    ({"version": "1.0", "train": {"rows": [ROW]}}, 1),
    ({"rows": [{"row_idx": 0, "row": ROW, "truncated_cells": []}], "num_rows_total": 9}, 1),
    ({"prompt": ["q", "q"], "completion": ["a", "a"]}, 2),
    ({"train": {"prompt": ["q"], "completion": ["a"]}}, 1),
    ({"prompt": {"0": "q", "1": "q"}, "completion": {"0": "a", "1": "a"}}, 2),
    ({"0": ROW, "1": ROW}, 2),
    ({"prompt": TURNS[:1], "completion": [{"role": "assistant", "content": "a"}]}, 1),
    (ROW, 1),
])  # fmt: skip
def test_rows_are_found_in_an_object(tmp_path, value, count):
    assert said(loaded(tmp_path / "rows.json", json.dumps(value))) == [("q", "a")] * count


def test_lists_in_python_s_own_writing_are_turns(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"messages": TURNS, "history": [["HQ", "HA"]]}, {"messages": TURNS, "history": []}]
    pandas.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    first, second = data.load(str(tmp_path / "rows.csv")).rows
    assert [turn["content"] for turn in first.messages] == ["HQ", "HA", "q", 'it\'s "a"']
    assert [turn["content"] for turn in second.messages] == ["q", 'it\'s "a"']
    pandas.DataFrame([{"prompt": TURNS[:1], "completion": TURNS[1:]}]).to_csv(tmp_path / "asked.csv", index=False)
    assert said(data.load(str(tmp_path / "asked.csv"))) == [("q", 'it\'s "a"')]
    assert said(loaded(tmp_path / "text.csv", "prompt,completion\n[INST] {x},\"{'a': 1}\"\n")) == [
        ("[INST] {x}", "{'a': 1}")
    ]


def test_turns_in_parts_are_read(tmp_path):
    turns = [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]}]
    rows = json.dumps({"contents": turns})
    assert said(loaded(tmp_path / "rows.jsonl", rows, named={"messages": "contents"})) == [("q", "ab")]


@pytest.mark.parametrize("wanted, other", [
    ("desirable", "undesirable"), ("chosen", "rejected"), ("Yes", "no"), (1, -1), (1.0, 0.0),
    ("thumbs up", "thumbs down"),
])  # fmt: skip
def test_judgements_are_told_in_every_wording(tmp_path, wanted, other):
    rows = [ROW | {"label": wanted}, ROW | {"label": other}]
    with pytest.raises(LuthierError, match="KTO"):
        loaded(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    other_kind = [ROW | {"label": "math"}, ROW | {"label": "code"}]
    assert len(loaded(tmp_path / "kinds.jsonl", "\n".join(map(json.dumps, other_kind)))) == 2


@pytest.mark.parametrize("row, advice", [
    ({"contents": TURNS}, "--columns conversations=contents"),
    ({"dialog": ["q", "a"]}, None),
    ({"conversation": [{"human": "q", "assistant": "a"}]}, None),
    ({"question": "q", "response_chosen": "a"}, None),
    ({"version": "1", "n": 3}, None),
    ({"input_ids": [1, 2], "labels": [1, 2]}, None),
    ({"body": "x", "category": "y"}, "--columns text=body,label=category"),
])  # fmt: skip
def test_advice_about_columns_can_be_followed(tmp_path, row, advice):
    with pytest.raises(LuthierError, match="fit no layout") as told:
        loaded(tmp_path / "rows.jsonl", json.dumps(row))
    found = str(told.value).partition("Say so: --columns ")[2].partition(". ")[0]
    assert bool(found) == (advice is not None and f"--columns {found}" in str(told.value))
    if found:
        assert loaded(tmp_path / "rows.jsonl", json.dumps(row), named=dict(p.split("=") for p in found.split(",")))
