"""Sources and layouts: what is recognised, and that every bad row is told with its line and its reason."""

from __future__ import annotations

import csv
import json
import math

import pytest

from luthier.core.errors import LuthierError
from luthier.data import LAYOUTS, load, split, without

ANSWERED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def write(path, rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


ROWS = {
    "messages": {"messages": ANSWERED},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "question-answer": {"question": "q", "answer": "a"},
    "source-target": {"source": "q", "target": "a"},
    "text": {"text": "t"},
    "text-label": {"text": "t", "label": "yes"},
    "text-pair-label": {"text": "t", "text_pair": "u", "label": 0},
}


@pytest.mark.parametrize("layout", ROWS)
def test_layouts_are_recognised_with_columns_to_spare(tmp_path, layout):
    examples = load(write(tmp_path / "a.jsonl", [{**ROWS[layout], "id": 3}] * 2))
    assert examples.layout == layout and examples.task == LAYOUTS[layout].tasks[0]
    assert [e.row for e in examples.rows] == [1, 2]
    if "causal-lm" in LAYOUTS[layout].tasks and layout != "text":
        assert examples.rows[0].messages == ANSWERED and examples.rows[0].answer == "a"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_formats_hold_the_same(tmp_path, suffix):
    rows = [{"question": "q\u2028 é", "answer": "a, b"}, {"question": "r", "answer": '"'}]
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if suffix == "tsv" else {}
            writer = csv.DictWriter(file, rows[0], **tabs)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n\n".join(map(json.dumps, rows)))
    examples = load(path)
    assert [[m["content"] for m in e.messages] for e in examples.rows] == [[r["question"], r["answer"]] for r in rows]
    assert [e.row for e in examples.rows] == {"jsonl": [1, 3], "csv": [2, 3], "tsv": [2, 3]}.get(suffix, [1, 2])


def test_a_csv_record_is_numbered_by_the_line_it_starts_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'question,answer\r\n"two\r\nlines",a\r\nq,\r\nq,a,b\r\nq,a\r\n')
    with pytest.raises(
        LuthierError, match=r"2 of 4 rows[\s\S]*row 4: empty 'answer'[\s\S]*row 5: 3 cells, the header has 2"
    ):
        load(path)
    examples = load(path, skip_bad_rows=True)
    assert [e.row for e in examples.rows] == [2, 6]
    assert examples.rows[0].messages[0]["content"] == "two\nlines"


def test_an_open_quote_in_a_csv_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,answer\nq,a\nq,"open\nq,a\n')
    with pytest.raises(LuthierError, match="row 3: malformed"):
        load(path)


BAD = {
    "{": "invalid JSON",
    "[1]": "a JSON list, expected an object",
    '{"messages": "hi"}': "'messages' is a str, expected a list",
    '{"messages": []}': "empty 'messages'",
    '{"messages": [3]}': "is an int, expected",
    '{"other": 1}': "'messages' is null",
    '{"messages": [{"role": "user", "content": "q"}]}': "no assistant turn",
    '{"messages": [{"role": "narrator", "content": "q"}]}': "unknown role 'narrator'",
    '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}': "empty 'answer'",
    '{"messages": [{"role": "user", "content": 3}]}': "is an int, expected a string",
    '{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}': "has no 'content'",
    '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "a"}]}': "not valid UTF-8",
}


@pytest.mark.parametrize("line", BAD)
def test_each_bad_row_is_told_with_its_line_and_reason(tmp_path, line):
    good = {"messages": ANSWERED}
    path = write(tmp_path / "a.jsonl", [good, "\n", line + "\n", good, good])
    with pytest.raises(LuthierError, match=r"1 of 4 rows of .*a\.jsonl[\s\S]*row 3: ") as error:
        load(path)
    assert BAD[line] in str(error.value)
    examples = load(path, skip_bad_rows=True)
    assert [e.row for e in examples.rows] == [1, 4, 5]
    assert len(examples.skipped) == 1 and examples.skipped[0][0] == 3 and BAD[line] in examples.skipped[0][1]


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "b\xffd"}\n')
    with pytest.raises(LuthierError, match="row 2: 'text' is not valid UTF-8"):
        load(tmp_path / "a.jsonl")


def test_bad_rows_are_grouped_by_their_reason(tmp_path):
    late = [{"messages": [*ANSWERED * n, {"role": "user", "content": 3}]} for n in (1, 2)]
    rows = [{"messages": []}] * 25 + [{"messages": ANSWERED}] * 5 + [{"messages": 3}] + late
    with pytest.raises(LuthierError, match=r"28 of 33 rows") as error:
        load(write(tmp_path / "a.jsonl", rows))
    lines = str(error.value).splitlines()
    assert lines[1] == "  25 rows: empty 'messages'; lines 1, 2, 3, 4, 5, …"
    assert lines[2] == "  row 31: 'messages' is an int, expected a list of {'role', 'content'}"
    assert lines[3].startswith("  2 rows: 'messages[2].content' is an int, expected a string (the first; ")
    assert lines[3].endswith("; lines 32, 33") and len(lines) == 5


def test_twenty_reasons_are_listed_and_the_rest_counted(tmp_path):
    turns = [[{"role": chr(97 + i), "content": "q"}] for i in range(25)]
    rows = [{"messages": each} for each in [*turns, turns[24], ANSWERED]]
    with pytest.raises(LuthierError, match=r"26 of 27 rows[\s\S]*row 20: [\s\S]*and 6 more, for 5 other") as error:
        load(write(tmp_path / "a.jsonl", rows))
    assert f"{chr(97 + 20)!r}" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_empty_data_is_an_error(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(LuthierError, match="is empty"):
        load(tmp_path / "a.json")


def test_nothing_but_bad_rows_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(LuthierError, match="1 of 1"):
        load(write(tmp_path / "a.jsonl", [{"text": " "}]), skip_bad_rows=True)


def test_columns_that_fit_no_layout_are_listed_with_what_is_missing(tmp_path):
    with pytest.raises(
        LuthierError, match=r"has the columns instruction, outptu.*instruction lacks 'output'; did you mean 'outptu'"
    ):
        load(write(tmp_path / "a.jsonl", [{"instruction": "q", "outptu": "a"}]))


def test_columns_that_fit_two_layouts_are_refused(tmp_path):
    row = {**ROWS["question-answer"], **ROWS["messages"]}
    with pytest.raises(LuthierError, match="fit several layouts: messages, question-answer"):
        load(write(tmp_path / "a.jsonl", [row]))


def test_the_task_chooses_among_layouts(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": 1}])
    assert load(path, task="causal-lm").layout == "text"
    assert load(path).layout == "text-label"
    with pytest.raises(LuthierError, match="fit no layout for seq2seq"):
        load(path, task="seq2seq")
    with pytest.raises(LuthierError, match="did you mean 'regression'"):
        load(path, task="regresion")


@pytest.mark.parametrize(
    ("labels", "task", "classes", "first"),
    [
        ([2, 10, 1], "classification", ["1", "2", "10"], "2"),
        (["no", "yes", "no"], "classification", ["no", "yes"], "no"),
        ([True, False, True], "classification", ["false", "true"], "true"),
        ([3.5, 1, 2.0], "regression", None, 3.5),
        (["3.5", "1", "2"], "regression", None, 3.5),
        (["1", "0", "1"], "classification", ["0", "1"], "1"),
        (["1.5x", "0", "b"], "classification", ["0", "1.5x", "b"], "1.5x"),
    ],
)
def test_labels_tell_classes_from_numbers(tmp_path, labels, task, classes, first):
    examples = load(write(tmp_path / "a.jsonl", [{"text": "t", "label": label} for label in labels]))
    assert (examples.task, examples.labels, examples.rows[0].label) == (task, classes, first)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (math.nan, "no 'label'"),
        (math.inf, "label is inf"),
        (None, "no 'label'"),
        ("", "empty 'label'"),
        ([1], "a list"),
    ],
)
def test_bad_labels(tmp_path, label, reason):
    rows = [{"text": "t", "label": 1.5}, {"text": "t", "label": label}]
    with pytest.raises(LuthierError, match=f"row 2: .*{reason}"):
        load(write(tmp_path / "a.jsonl", rows))


def test_regression_asked_for_takes_numbers_only(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": 1}, {"text": "t", "label": "high"}])
    with pytest.raises(LuthierError, match="row 2: label 'high' does not fit regression"):
        load(path, task="regression")
    assert load(path, task="regression", skip_bad_rows=True).rows[0].label == 1.0


def test_llm_adapters_rows_score_by_their_answer_column(tmp_path):
    rows = [{"instruction": "q", "input": "more", "output": "the correct answer is true", "answer": "true"}]
    rows += [{"instruction": "q", "input": "", "output": "", "answer": "false"}]
    examples = load(write(tmp_path / "a.jsonl", rows))
    assert examples.rows[0].messages[0]["content"] == "q\n\nmore" and examples.rows[0].answer == "true"
    assert examples.rows[1].messages[1]["content"] == "false"
    assert examples.scorer is not None and examples.scorer.name == "choice"


def test_a_conversational_prompt_is_context(tmp_path):
    row = {
        "prompt": [*ANSWERED, {"role": "user", "content": "r"}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    example = load(write(tmp_path / "a.jsonl", [row])).rows[0]
    assert example.context == 3 and example.answer == "b" and len(example.messages) == 4


def test_a_folder_gives_the_files_of_a_split(tmp_path):
    write(tmp_path / "train-0.jsonl", [{"text": "a"}, {"text": "b"}])
    write(tmp_path / "train-1.jsonl", [{"text": "c"}, {"text": ""}])
    write(tmp_path / "dev.jsonl", [{"text": "d"}])
    with pytest.raises(LuthierError, match=r"row train-1\.jsonl:2: empty 'text'"):
        load(tmp_path)
    assert [e.text for e in load(tmp_path, skip_bad_rows=True).rows] == ["a", "b", "c"]
    assert [e.text for e in load(tmp_path, split="validation").rows] == ["d"]
    with pytest.raises(LuthierError, match=r"no split 'test'.*dev\.jsonl"):
        load(tmp_path, split="test")


@pytest.mark.parametrize("name", ["data.jsonl", "./data", "data.xml"])
def test_no_such_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dtaa.jsonl", [{"text": "a"}])
    (tmp_path / "data.xml").touch()
    with pytest.raises(LuthierError, match=r"dtaa\.jsonl|no data file|cannot read"):
        load(name)


def test_a_hub_id_without_a_network_is_told_plainly(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(LuthierError, match=r"not a file here, and as a hub data set 'some/thing' \(configuration main"):
        load("some/thing:main:train")


def test_hub_class_names_become_labels(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or data)
    examples = load("some/thing::test")
    assert asked == [(("some/thing", None), {"split": "test"})]
    assert examples.labels == ["neg", "pos"] and [e.label for e in examples.rows] == ["pos", "neg"]


def test_a_hub_row_without_a_label_is_bad(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: data)
    with pytest.raises(LuthierError, match="row 2: label -1 does not fit classification"):
        load("some/thing::test")
    assert [e.label for e in load("some/thing::test", skip_bad_rows=True).rows] == ["pos"]


def test_a_limit_draws_by_seed_and_knows_all_classes(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": str(i), "label": i // 10} for i in range(50)])
    rows = [[e.row for e in load(path, limit=5, seed=seed).rows] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2] and rows[0] == sorted(rows[0]) and len(rows[0]) == 5
    assert load(path, limit=5).labels == ["0", "1", "2", "3", "4"]
    with pytest.raises(LuthierError, match="limit is 0"):
        load(path, limit=0)


def test_the_fingerprint_follows_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    first = load(path).fingerprint
    assert first == load(path).fingerprint and len(first) == 64
    assert load(path, limit=1).fingerprint != first
    assert load(write(path, [{"text": "a"}, {"text": "c"}])).fingerprint != first


def test_a_split_is_repeatable_and_shares_no_problem(tmp_path):
    rows = [{"question": f"q{i % 30}", "answer": str(i)} for i in range(60)]
    examples = load(write(tmp_path / "a.jsonl", rows))
    train, held = split(examples, n=10, seed=3)
    assert (len(train), len(held)) == (50, 10)
    assert not {e.key() for e in train.rows} & {e.key() for e in held.rows}
    again = split(examples, n=10, seed=3)
    assert again[1].fingerprint == held.fingerprint != split(examples, n=10, seed=4)[1].fingerprint
    assert len(split(examples, 0.2)[1]) == 12
    assert len(without(examples, train)) == 10
    for n in (0, 60):
        with pytest.raises(LuthierError, match="both parts"):
            split(examples, n=n)


def test_importing_data_loads_nothing_heavy():
    import subprocess
    import sys

    heavy = ("torch", "transformers", "datasets", "numpy")
    code = f"import luthier.data, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_why_rows_cannot_be_held_out_is_true(tmp_path):
    rows = [{"prompt": f"q{i % 4}", "completion": f"a{i}"} for i in range(32)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LuthierError, match=r"no input has fewer than 8 rows\. Hold out 8 or more"):
        split(load(path), n=3)
    assert [len(part) for part in split(load(path), n=8)] == [24, 8]
    with pytest.raises(LuthierError, match="both parts need at least one row"):
        split(load(path), n=32)
