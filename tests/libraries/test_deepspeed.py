"""DeepSpeed: two processes under its ZeRO 2 give the losses of one, and one whole adapter."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

import luthier as lt
from luthier.training import Training, metrics
from support.tiny import save_model, sums, write_rows

LAUNCH = (
    "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no",
)  # fmt: skip


def there() -> bool:
    try:
        return bool(importlib.metadata.version("deepspeed"))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not there(), reason="deepspeed is not installed (pip install deepspeed)")
@pytest.mark.parametrize("stage", (1, 2))
def test_two_processes_under_zero(tmp_path, stage):
    model = save_model(tmp_path / "model", "llama", vocab_size=4200)
    rows = write_rows(tmp_path / "rows.jsonl", sums(40, 0))
    given = Training(steps=6, batch=8, eval_fraction=0, lr=1e-2)
    alone = lt.train(model, rows, form=lt.LoRA(rank=4), out=str(tmp_path / "one"), training=given, progress=False)
    words = ["-m", "luthier", "train", model, rows, "--method", "lora", "--rank", "4", "--steps", "6", "--batch", "4"]
    words += ["--eval-fraction", "0", "--lr", "0.01", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *LAUNCH, f"--zero_stage={stage}", *words], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in metrics.read(tmp_path / "two") if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx([loss for _, loss in alone.losses], rel=1e-5)
    lt.load(lt.model(model).model, tmp_path / "two" / "adapter")
