"""`lt.shard`: the base over processes, the adapter whole on each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.core.adapters.shard import shard
from support import fresh
from support.architectures import ARCHITECTURES


def test_two_processes_train_as_one_and_save_one_adapter(tmp_path):
    script = Path(__file__).parents[2] / "support" / "sharded_save.py"
    done = fresh.run(script, tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        report = json.loads((tmp_path / f"report-{rank}.json").read_text())
        assert report["difference"] < 1e-9
        assert report["silent"]
    specs = [json.loads((tmp_path / name / "adapter.json").read_text()) for name in ("adapter", "alone")]
    assert specs[0]["base"] == specs[1]["base"]
    base = ARCHITECTURES["qwen3"].build(dtype=torch.float64)
    models = [lt.load(base, tmp_path / "adapter"), lt.load(base, tmp_path / "alone", "other")]
    tensors = lt.trainable(models[0])
    for name in [name for name in tensors if name.startswith("default")]:
        other = tensors[name.replace("default", "other", 1)]
        torch.testing.assert_close(tensors[name], other, rtol=0, atol=1e-9)


def test_refusals():
    model = ARCHITECTURES["llama"].build()
    with pytest.raises(lt.LuthierError, match="no adapter"):
        shard(model)
    with pytest.raises(lt.LuthierError, match="torchrun"):
        shard(lt.attach(model, lt.LoRA(rank=2)))
