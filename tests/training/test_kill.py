"""A run killed at any moment, also while saving, ends with the very adapter of a run left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import luthier as lt
from luthier.training import Run, Training, metrics, train
from support import fresh


def test_killed_runs_end_alike(llama, additions, tmp_path):
    settings = Training(steps=24, batch=4, accumulate=2, save_every=1, lr=1e-2)
    run = Run(llama, additions, lt.LoRA(rank=4, dropout=0.2), out=str(tmp_path / "killed"), training=settings)
    script = Path(__file__).parents[1] / "support" / "killed.py"
    done = fresh.run(script, json.dumps(run.to_dict()))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["status"] == 0
    assert any(report["left"]), "no kill fell into a save"
    alone = train(replace(run, out=str(tmp_path / "alone")), progress=False)
    files = [folder / "adapter" / "adapter.safetensors" for folder in (run.folder, alone.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = [(line["step"], line["loss"]) for line in metrics.read(run.folder) if "loss" in line]
    assert losses == alone.losses
