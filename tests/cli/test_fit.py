"""`train`, `evaluate`, `generate`: from rows to answers."""

from __future__ import annotations

import json

import pytest

import luthier as lt
from luthier.models import load
from support.cli_tools import write_rows


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, llama, rows):
    """A run that has learned to repeat one word."""
    from luthier.cli import main

    folder = tmp_path_factory.mktemp("fit") / "run"
    words = ["train", llama, rows, "--method", "lora", "--rank", 8, "--steps", 6, "--batch", 4, "--out", folder]
    assert main([str(word) for word in words]) == 0
    return folder


def test_a_run_leaves_its_folder(fitted):
    assert {"run.json", "adapter", "metrics.jsonl", "loss.png", "README.md"} <= {p.name for p in fitted.iterdir()}
    record = json.loads((fitted / "run.json").read_text())
    assert record["run"]["form"] == {"name": "lora", "settings": lt.LoRA(rank=8).to_dict()}
    assert record["run"]["training"]["steps"] == 6


def test_the_kept_command_repeats_the_run(fitted, call, tmp_path):
    import shlex

    words = shlex.split(json.loads((fitted / "run.json").read_text())["command"])
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert words[0] == "luthier" and call(*words[1:]).code == 0
    first, second = fitted / "adapter", tmp_path / "again" / "adapter"
    assert (first / "adapter.safetensors").read_bytes() == (second / "adapter.safetensors").read_bytes()


def test_a_licence_goes_with_the_adapter(call, llama, rows, tmp_path):
    words = ["--method", "lora", "--rank", 2, "--steps", 1, "--batch", 2, "--license", "CC-BY-4.0"]
    assert call("train", llama, rows, *words, "--out", tmp_path / "run").code == 0
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "adapter.json").read_text())["license"] == "CC-BY-4.0"
    for card in (adapter.parent / "README.md", adapter / "README.md"):
        text = card.read_text()
        assert "\nlicense: cc-by-4.0\n" in text and "| licence of the adapter | CC-BY-4.0 |" in text
    assert "--license CC-BY-4.0" in json.loads((adapter.parent / "run.json").read_text())["command"]


def test_a_folder_in_use_is_refused(fitted, call, llama, rows):
    done = call("train", llama, rows, "--out", fitted)
    assert done.code == 2 and "overwrite" in done.err


def test_resume_of_a_whole_run_changes_nothing(fitted, call, llama, rows):
    before = (fitted / "adapter" / "adapter.safetensors").read_bytes()
    words = ["--method", "lora", "--rank", 8, "--steps", 6, "--batch", 4, "--out", fitted, "--resume"]
    assert call("train", llama, rows, *words).code == 0
    assert (fitted / "adapter" / "adapter.safetensors").read_bytes() == before


def test_dry_run_shows_and_leaves_nothing(call, llama, rows, tmp_path):
    done = call("train", llama, rows, "--where", "q_proj", "--dry-run", "--out", tmp_path / "run")
    assert done.code == 0
    assert "q_proj" in done.out and "[[<|im_end|>]]" in done.out and "trainable" in done.out
    assert not (tmp_path / "run").exists()


def test_the_default_method_is_wegeft(call, llama, rows, tmp_path):
    done = call("train", llama, rows, "--dry-run", "--out", tmp_path / "run")
    assert "wegeft" in done.out


def test_evaluate_prints_a_score(call, llama, rows, fitted, tmp_path):
    out = tmp_path / "scores.json"
    done = call("evaluate", llama, rows, "--adapter", fitted, "--max-new-tokens", 4, "--out", out)
    assert done.code == 0
    assert "exact_match" in done.out and "95% interval" in done.out and "on 8 rows" in done.out
    report = json.loads(out.read_text())
    assert report["count"] == len(report["predictions"]) == 8 and report["scorer"] == "exact_match"


def test_evaluate_as_json(call, llama, rows):
    found = json.loads(call("evaluate", llama, rows, "--limit", 3, "--max-new-tokens", 2, "--json").out)
    assert found["count"] == 3 and found["adapter"] is None and "predictions" not in found


def test_evaluate_agrees_with_the_library(call, llama, rows, fitted):
    from luthier import data
    from luthier.evaluating import evaluate

    base = load(str(llama))
    lt.load(base.model, fitted / "adapter")
    wanted = evaluate(base.model, base.processor, data.load(rows), max_new_tokens=4, progress=False)
    found = json.loads(call("evaluate", llama, rows, "--adapter", fitted, "--max-new-tokens", 4, "--json").out)
    assert found["score"] == wanted.score and tuple(found["interval"]) == wanted.interval


def test_evaluate_refuses_an_unknown_scorer(call, llama, rows):
    done = call("evaluate", llama, rows, "--scorer", "exct_match")
    assert done.code == 2 and "did you mean 'exact_match'" in done.err


@pytest.mark.parametrize(
    "labels, metric, other, shown", [(["a", "b"], "accuracy", "mcc", "%"), ([0.5, 1.5, 2.25], "pearson", "mse", "0.")]
)
def test_evaluate_names_the_metric_that_it_shows(call, bert, tmp_path, labels, metric, other, shown):
    """Classes and numbers are not scored by a scorer, and a correlation is not a share."""
    data = write_rows(
        tmp_path / "d.jsonl", [{"text": "ab" * i, "label": labels[i % len(labels)]} for i in range(1, 13)]
    )
    assert call("train", bert, data, "--method", "lora", "--steps", 1, "--out", tmp_path / "run").code == 0
    words = ["evaluate", bert, data, "--adapter", tmp_path / "run"]
    done = call(*words)
    first, second = done.out.splitlines()[:2]
    assert first.startswith(f"{metric} ") and shown in first and second.startswith(f"{other} ")
    assert ("%" in first.partition("(")[0]) == (metric == "accuracy")
    found = json.loads(call(*words, "--json").out)
    assert found["metric"] == metric and found["scorer"] is None and found["score"] == found["metrics"][metric]
    refused = call(*words, "--scorer", "exact_match")
    assert refused.code == 2 and "leave --scorer out" in refused.err


def test_evaluate_refuses_what_the_harness_does_not_read(call):
    for flag, value in (("scorer", "label"), ("split", "train"), ("max-length", "8"), ("max-new-tokens", "8")):
        done = call("evaluate", "m", "--lm-eval", "arc_easy", f"--{flag}", value)
        assert done.code == 2 and f"what --{flag} would" in done.err


def test_generate_answers_each_prompt(call, llama, fitted):
    words = ["generate", llama, "say one", "say two", "--adapter", fitted, "--max-new-tokens", 4, "--json"]
    found = json.loads(call(*words).out)
    assert [each["prompt"] for each in found] == ["say one", "say two"]
    assert json.loads(call(*words, "--merged").out) == found


def test_generate_reads_a_file_and_the_standard_input(call, shell, llama, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("say one\n\nsay two\n")
    found = json.loads(call("generate", llama, "--file", file, "--max-new-tokens", 2, "--json").out)
    assert [each["prompt"] for each in found] == ["say one", "say two"]
    done = shell("generate", llama, "--max-new-tokens", 2, "--json", stdin="say one\n")
    assert json.loads(done.out) == found[:1]


def test_generate_is_seeded(call, llama):
    words = ["generate", llama, "say one", "--temperature", 2.0, "--max-new-tokens", 8, "--json"]
    assert call(*words, "--seed", 1).out == call(*words, "--seed", 1).out != call(*words, "--seed", 2).out


def test_generate_merged_needs_an_adapter(call, llama):
    done = call("generate", llama, "x", "--merged")
    assert done.code == 2 and "--adapter" in done.err


def test_show_a_run_folder(call, fitted):
    out = call("show", fitted).out
    assert "lora(" in out and "rank=8" in out and "steps" in out


def test_merge_takes_a_run_folder(call, llama, fitted, tmp_path):
    assert call("merge", llama, fitted, tmp_path / "merged").code == 0
    answers = [
        json.loads(call("generate", *words, "say one", "--max-new-tokens", 4, "--json").out)
        for words in ([llama, "--adapter", fitted], [tmp_path / "merged"])
    ]
    assert answers[0] == answers[1]


def test_a_trained_head_stays_where_the_rows_lack_a_class(call, tmp_path):
    from support.tiny import save_model, write_rows

    names = {0: "a", 1: "b", 2: "c"}
    base = save_model(tmp_path / "bert", "bert", id2label=names, label2id={name: i for i, name in names.items()})
    whole = [{"text": f"{name} {i}", "label": name} for i in range(4) for name in "abc"]
    parts = {"whole": whole, "two": [row for row in whole if row["label"] != "c"], "one": whole[::3]}
    found = {}
    for part, rows in parts.items():
        out = tmp_path / f"{part}.json"
        words = [base, write_rows(tmp_path / f"{part}.jsonl", rows), "--task", "classification", "--out", out]
        assert call("evaluate", *words).code == 0
        found[part] = {line["row"]: line for line in json.loads(out.read_text())["predictions"]}
    by_text = {row["text"]: found["whole"][number]["confidence"] for number, row in enumerate(whole, 1)}
    for part in ("two", "one"):
        for number, row in enumerate(parts[part], 1):
            assert found[part][number]["confidence"] == pytest.approx(by_text[row["text"]], rel=1e-5)


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_classes_that_have_other_names_are_not_scored(call, tmp_path, names):
    from support.tiny import save_model, write_rows

    own = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"x{i}", "label": "yn"[i % 2]} for i in range(8)])
    done = call("evaluate", save_model(tmp_path / "named", "bert", **own), rows)
    assert done.code == 2 and "classes n, y" in done.err and f"are {', '.join(names)}" in done.err
    assert call("evaluate", save_model(tmp_path / "generic", "bert"), rows).code == 0


def test_a_head_that_was_never_trained_is_not_scored(call, tmp_path):
    from support.tiny import save_model, write_rows

    base = save_model(tmp_path / "bert", "bert", num_labels=3)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"x{i}", "label": "yn"[i % 2]} for i in range(8)])
    done = call("evaluate", base, rows)
    assert done.code == 2 and "classifier" in done.err and "never trained" in done.err
    words = ["--method", "lora", "--rank", 2, "--steps", 1, "--batch", 2, "--out", tmp_path / "run"]
    assert call("train", base, rows, *words).code == 0
    assert call("evaluate", base, rows, "--adapter", tmp_path / "run").code == 0
