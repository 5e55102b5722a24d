"""What earlier versions wrote: adapters, runs, recipes and studies of version 0.1.0 load, resume and go on as they are.

`old/` was written by the code before its files moved: a run of WeGeFT and a bottleneck under LoRA+, stopped after 8 of
12 steps, the adapter that it came to when it was not stopped, and a study of two runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.cli import main

OLD = Path(__file__).with_name("old")


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A copy, as the folder that commands run in: runs and studies name their data by relative paths."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_an_adapter_loads(old):
    base = lt.model("base").model
    lt.load(base, old / "finished")
    held = load_file(old / "finished" / "adapter.safetensors")
    assert {key.partition(".")[2] for key in held} <= {key.partition(".")[2] for key in lt.trainable(base)}
    assert [row["form"] for row in lt.describe(base)][:1] == ["wegeft"]


def test_a_run_resumes_to_the_same_adapter(old):
    words = ["--recipe", "recipe.toml", "--out", "run", "--save-every", "4", "--eval-fraction", "0", "--resume"]
    assert main(["train", "base", "sums.jsonl", *words]) == 0
    wanted = load_file(old / "finished" / "adapter.safetensors")
    found = load_file(old / "run" / "adapter" / "adapter.safetensors")
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)


def test_a_study_goes_on(old, capfd):
    kept = {path: path.read_bytes() for path in (old / "study" / "runs").rglob("record.json")}
    assert main(["compare", "study.toml", "--out", "study"]) == 0
    assert len(kept) == 2 and all(path.read_bytes() == content for path, content in kept.items())
    assert json.loads((old / "study" / "results.json").read_text())
