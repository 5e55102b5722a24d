"""Every example runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from support.shipped import ROWS, byte_level
from support.tiny import save_model

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_run():
    docs = EXAMPLES.parent / "docs"
    pages = "".join((docs / name).read_text(encoding="utf-8") for name in ("tutorial.md", "stages.md"))
    data = {file.name for file in EXAMPLES.iterdir() if file.suffix != ".py"}
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"demo.py"}
    assert all(f"examples/{name}" in pages for name in data)


def test_the_demo_runs_to_its_end(tmp_path, monkeypatch):
    """With a model that learns nothing in two steps, which the demo says at its end."""
    pytest.importorskip("reasoning_gym")
    chat = save_model(tmp_path / "smollm2-135m", "llama", vocab_size=ROWS, max_position_embeddings=512)
    byte_level().save_pretrained(chat)
    spec = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert spec and spec.loader
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "TESTED", 4)
    monkeypatch.setattr(demo, "NEW_TOKENS", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--steps", "2"])
    with pytest.raises(SystemExit, match="did not do what it is to show"):
        demo.main()
    assert (tmp_path / "runs" / "demo" / "demo.json").is_file()
