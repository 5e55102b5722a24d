"""lm-eval tasks on adapted models."""

from __future__ import annotations

import importlib.util
import json

import pytest

import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.evaluating.lm_eval import check_harness, harness
from support.tiny import write_rows

TASK = """task: letters
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{rows}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["a", "b"]
doc_to_target: label
metric_list:
  - metric: acc
"""
NEEDS = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (the extra lm-eval)")


@pytest.fixture
def task(tmp_path) -> str:
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": f"{i} is", "label": i % 2} for i in range(6)])
    (tmp_path / "letters.yaml").write_text(TASK.format(rows=rows))
    return str(tmp_path / "letters.yaml")


@NEEDS
def test_a_task_of_ones_own(llama, task, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = models.load(llama)
    base = harness(loaded.model, loaded.processor, [task], batch=2)["letters"]
    assert 0 <= base["acc,none"] <= 1
    lt.attach(loaded.model, lt.LoRA(rank=4))
    assert harness(loaded.model, loaded.processor, [task], batch=2)["letters"]["acc,none"] == base["acc,none"]
    assert main(["evaluate", llama, "--lm-eval", task, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["lm_eval"]["letters"]["acc,none"] == base["acc,none"]
    with pytest.raises(lt.LuthierError, match="no task 'arc_easyy'; did you mean 'arc_easy'"):
        harness(loaded.model, loaded.processor, ["arc_easyy"])


def test_what_is_missing_is_named(llama, task, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(lt.LuthierError, match=r"luthier\[lm-eval\]"):
        check_harness()
    assert main(["evaluate", llama]) == 2 and "one of the two" in capsys.readouterr().err
