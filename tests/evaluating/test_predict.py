"""Prediction: what stands beside each row is what the model says to it alone, and a killed file goes on."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pyarrow.parquet
import pytest
import torch

import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.data.rewriting.journal import Journal
from luthier.evaluating.generate import tokenised
from luthier.evaluating.predict import WRITERS
from support.tiny import save_model, write_rows

ROWS = [{"id": i, "body": "ab" * (1 + i % 5), "more": {"x": [i]}} for i in range(11)]


def classifier(folder, labels=("bad", "good", "so-so"), **more):
    names = dict(enumerate(labels))
    return save_model(folder / "bert", "bert", id2label=names, label2id={n: i for i, n in names.items()}, **more)


@pytest.fixture(scope="module")
def bert3(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("models"))


def test_classes_are_those_of_each_row_alone(bert3, tmp_path):
    """All columns stay, the probabilities are the softmax, and the file is the same in every format."""
    loaded = models.load(bert3, task="classification")
    found = lt.predict(loaded.model, loaded.processor, ROWS, columns="text=body", top_k=3, batch=4)
    assert found.task == "classification" and found.count == 11 == len(found.rows)
    for row, given in zip(found.rows, ROWS, strict=True):
        ids = loaded.processor(given["body"], return_tensors="pt")
        with torch.no_grad():
            shares = torch.softmax(loaded.model(**ids).logits[0].double(), -1).numpy()
        order = (-shares).argsort()
        names = [loaded.model.config.id2label[int(i)] for i in order]
        assert {key: row[key] for key in given} == given
        assert [row["prediction"], row["prediction_2"], row["prediction_3"]] == names
        assert row["probability"] == pytest.approx(shares.max(), abs=1e-6)
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"scored.{suffix}"
        told = lt.predict(loaded.model, loaded.processor, source, columns="text=body", top_k=3, batch=4, out=out)
        assert told.rows == [] and told.out == out and sum(told.predictions.values()) == 11
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "scored.parquet").to_pylist()
    assert lines == found.rows == table
    with (tmp_path / "scored.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in cells] == [row["probability"] for row in found.rows]
    assert cells[3]["more"] == '{"x": [3]}' and list(cells[0]) == list(lines[0])


def test_labels_that_are_there_are_not_read(bert3):
    loaded = models.load(bert3, task="classification")
    rows = [{"text": "ab", "label": "nobody knows"}, {"text": "b", "label": None}]
    bare = [{"text": row["text"]} for row in rows]
    ours, theirs = (lt.predict(loaded.model, loaded.processor, each).rows for each in (rows, bare))
    assert [row.pop("label") for row in ours] == ["nobody knows", None] and ours == theirs


def test_below_the_threshold_nothing_is_predicted(bert3):
    loaded = models.load(bert3, task="classification")
    every = lt.predict(loaded.model, loaded.processor, ROWS, columns="text=body")
    middle = float(np.median([row["probability"] for row in every.rows]))
    some = lt.predict(loaded.model, loaded.processor, ROWS, columns="text=body", threshold=middle)
    for a, b in zip(every.rows, some.rows, strict=True):
        assert b["prediction"] == (a["prediction"] if a["probability"] >= middle else None)
    assert 0 < some.unsure < 11


def test_several_classes_are_those_above_the_threshold(tmp_path):
    base = classifier(tmp_path, ("a", "b", "c", "d"), problem_type="multi_label_classification")
    loaded = models.load(base, task="multi-label")
    rows = [{"text": "ab"}, {"text": "ba a"}]
    for threshold, most in ((None, 1), (0.4, 1), (0.4, 2)):
        found = lt.predict(loaded.model, loaded.processor, rows, threshold=threshold, top_k=most)
        for row in found.rows:
            with torch.no_grad():
                ids = loaded.processor(row["text"], return_tensors="pt")
                shares = torch.sigmoid(loaded.model(**ids).logits[0].double()).tolist()
            wanted = sorted(
                ((s, n) for s, n in zip(shares, "abcd", strict=True) if s >= (threshold or 0.5)), reverse=True
            )
            wanted = wanted[:most] if most > 1 else wanted
            assert row["prediction"] == [name for _, name in wanted]
            assert row["probability"] == pytest.approx([share for share, _ in wanted], abs=1e-6)


def test_a_tag_for_each_word(tmp_path):
    names = {0: "O", 1: "B-X"}
    base = save_model(tmp_path / "bert", "bert")
    loaded = models.load(base, task="token-classification", labels=list(names.values()))
    rows = [{"tokens": ["ab", "c", "dd"]}, {"tokens": ["x"]}]
    found = lt.predict(loaded.model, loaded.processor, rows)
    for row in found.rows:
        ids = loaded.processor(" ".join(row["tokens"]), return_tensors="pt")
        with torch.no_grad():
            shares = torch.softmax(loaded.model(**ids).logits[0].double(), -1)
        starts = [0] if len(row["tokens"]) == 1 else [0, 3, 5]
        assert row["prediction"] == [names[int(shares[i].argmax())] for i in starts]
        assert row["probability"] == pytest.approx([float(shares[i].max()) for i in starts], abs=1e-6)
    sure = lt.predict(loaded.model, loaded.processor, rows, threshold=1.0)
    assert sure.rows[0]["prediction"] == ["O", "O", "O"]


def test_an_answer_is_the_likeliest_span(tmp_path):
    """By brute force over all spans of one window."""
    loaded = models.load(save_model(tmp_path / "bert", "bert"), task="question-answering")
    rows = [{"question": "q?", "context": "some words here"}, {"question": "why?", "context": "b"}]
    found = lt.predict(loaded.model, loaded.processor, rows, top_k=2)
    for row in found.rows:
        ids = loaded.processor(row["question"], row["context"], return_tensors="pt")
        with torch.no_grad():
            out = loaded.model(**ids)
        a, b = out.start_logits[0].double(), out.end_logits[0].double()
        first = len(row["question"])
        spans = {(i, j): float(a[i] + b[j]) for i in range(first, len(a)) for j in range(i, len(a))}
        spans[None, None] = float(a[0] + b[0])
        best = max(spans, key=spans.__getitem__)
        text = "" if best[0] is None else row["context"][best[0] - first : best[1] + 1 - first]
        share = math.exp(spans[best]) / sum(map(math.exp, spans.values()))
        assert row["prediction"] == text and row["probability"] == pytest.approx(share, rel=1e-4)
        assert row["start"] == (None if best[0] is None else best[0] - first)


def test_a_vector_for_each_text(bert):
    loaded = models.load(bert, task="embedding")
    found = lt.predict(loaded.model, loaded.processor, [{"text": "ab"}, {"text": "a longer one"}, {"text": "ab"}])
    assert found.rows[0]["embedding"] == pytest.approx(found.rows[2]["embedding"])
    ids = loaded.processor("a longer one", return_tensors="pt")
    with torch.no_grad():
        mean = loaded.model(**ids).last_hidden_state[0].mean(0)
    assert found.rows[1]["embedding"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_written_answers_are_those_of_generate(tmp_path, name):
    """The probability is that of the tokens, one by one."""
    base = save_model(tmp_path / name, name)
    loaded = models.load(base, task="seq2seq" if name == "t5" else "causal-lm")
    rows = [{"prompt": "ab"}, {"prompt": "a longer prompt", "completion": "it is there"}, {"prompt": "c"}]
    found = lt.predict(loaded.model, loaded.processor, rows, max_new_tokens=6, batch=2)
    prompts = [row["prompt"] for row in rows]
    assert [row["prediction"] for row in found.rows] == lt.generate(
        loaded.model, loaded.processor, prompts, max_new_tokens=6
    )
    assert found.rows[1]["completion"] == "it is there"
    ids = torch.tensor(tokenised(loaded.model, loaded.processor, ["ab"]))
    with torch.no_grad():
        out = loaded.model.generate(
            input_ids=ids, max_new_tokens=6, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
    logs = [
        float(torch.log_softmax(s[0].double(), -1)[out.sequences[0, i - len(out.scores)]])
        for i, s in enumerate(out.scores)
    ]
    assert found.rows[0]["tokens"] == len(logs)
    assert found.rows[0]["probability"] == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-4)


def test_a_killed_file_goes_on_and_is_the_same(bert3, tmp_path, monkeypatch):
    loaded = models.load(bert3, task="classification")
    source, told = write_rows(tmp_path / "rows.jsonl", ROWS), {"columns": "text=body", "batch": 1, "top_k": 2}
    whole = tmp_path / "whole.csv"
    lt.predict(loaded.model, loaded.processor, source, out=whole, **told)
    add, count = Journal.add, [0]

    def killed(self, *given):
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        add(self, *given)

    monkeypatch.setattr(Journal, "add", killed)
    out = tmp_path / "scored.csv"
    with pytest.raises(KeyboardInterrupt):
        lt.predict(loaded.model, loaded.processor, source, out=out, **told)
    assert not out.exists()
    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(LuthierError, match="was begun before"):
        lt.predict(loaded.model, loaded.processor, source, out=out, **told)
    with pytest.raises(LuthierError, match="begun with another top_k"):
        lt.predict(loaded.model, loaded.processor, source, out=out, resume=True, **told | {"top_k": 1})
    seen = []
    lt.predict(loaded.model, loaded.processor, source, out=out, resume=True, done=seen.append, **told)
    assert seen[0] == 4 and out.read_bytes() == whole.read_bytes() and len(list(tmp_path.glob(".scored*"))) == 0


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"top_k": 0}, "at least 1"),
        ({"max_new_tokens": 3}, "max_new_tokens is of written answers"),
        ({"out": "scored.xlsx"}, "ends in .csv, .jsonl, .parquet"),
        ({"resume": True}, "name it"),
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"rows": [{"text": "a", "prediction": "b"}]}, "has a column 'prediction'"),
        ({"rows": [{"body": "a"}]}, "fit no layout for classification"),
        ({"rows": [{"text": "a" * 300}]}, "the maximum is 128"),
    ],
)
def test_what_cannot_be_is_refused(bert3, wrong, told):
    loaded = models.load(bert3, task="classification")
    with pytest.raises(LuthierError, match=told):
        lt.predict(loaded.model, loaded.processor, **{"rows": [{"text": "a"}], **wrong})


def test_rows_that_cannot_be_read_are_left_out_where_told(bert3):
    loaded = models.load(bert3, task="classification")
    rows = [{"text": "a"}, {"text": ""}, {"text": "b" * 300}, {"text": "c"}]
    found = lt.predict(loaded.model, loaded.processor, rows, skip_bad_rows=True)
    assert [row["text"] for row in found.rows] == ["a", "c"] and [row for row, _ in found.skipped] == [2, 3]
    cut = lt.predict(loaded.model, loaded.processor, rows, skip_bad_rows=True, truncate=True)
    assert [row["text"][:1] for row in cut.rows] == ["a", "b", "c"]


def test_the_command_predicts_with_an_adapter(bert, tmp_path, monkeypatch, capsys):
    """Trained, then predicted on rows without labels; the summary is JSON."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "ab"[i % 2] + str(i), "label": ("first", "second")[i % 2]} for i in range(24)]
    write_rows(tmp_path / "train.jsonl", rows)
    with open("new.csv", "w") as file:
        file.write("who,body\n" + "".join(f"{i},{row['text']}\n" for i, row in enumerate(rows[:6])))
    settings = ["--method", "lora", "--epochs", "12", "--lr", "2e-2", "--out", "run"]
    assert main(["train", bert, "train.jsonl", *settings]) == 0
    capsys.readouterr()
    asked = ["predict", bert, "new.csv", "--columns", "text=body", "--adapter", "run", "--out", "scored.csv"]
    assert main([*asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 6 and told["task"] == "classification" and told["predictions"] == {"first": 3, "second": 3}
    with open("scored.csv", newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == ["first", "second"] * 3
    assert main(asked) == 2 and "exists" in capsys.readouterr().err


def test_columns_that_parquet_has_no_type_for_are_json(tmp_path):
    """Any rows that can be read can be written: turns of texts beside turns in parts, objects without keys."""
    import pyarrow.parquet

    columns = {
        "turns": [[{"role": "user", "content": "a"}], [{"role": "user", "content": [{"type": "image"}]}]],
        "kinds": [1, "a"], "long": [2**70, None], "empty": [{}, None], "within": [[{"a": {}}], []],
        "plain": [[1, 2], None], "text": ["a", None],
    }  # fmt: skip
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    WRITERS[".parquet"](rows, tmp_path / "rows.parquet")
    again = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    assert {name: again[name] for name in ("plain", "text")} == {name: columns[name] for name in ("plain", "text")}
    for name in set(columns) - {"plain", "text"}:
        assert [None if cell is None else json.loads(cell) for cell in again[name]] == columns[name]
