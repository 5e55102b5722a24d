"""Whole training loops beside TRL's SFTTrainer, and transformers' Trainer for classifiers, both with peft.

The same rows, batch, rank and layers (LoRA of rank 8 on every linear layer), one epoch in random order, each run in a
process of its own, taking turns: SmolLM2-135M on rows of question and answer (the loss on the answer), in float32 and
in bfloat16, and MiniLM as a classifier of short texts. Luthier's run is what `luthier train` does by default. Told are
the seconds of the loop (from the begin of training to its end, without loading), the processor's time for it (the
steadier figure on a machine that is shared), and the highest resident set of the process.

    python -m bench loops --questions gsm8k/train.jsonl --texts clinc150/train.jsonl [--rows 64] [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of
from bench.packing import questions, texts

START = """
import json, resource, sys, time
import torch, transformers
model, source, out, batch, dtype = sys.argv[1:6]
batch = int(batch)
class Clock(transformers.TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        self.began = time.perf_counter(), time.process_time()
    def on_train_end(self, *args, **kwargs):
        self.taken = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
clock = Clock()
"""
OURS = """
import luthier as lt
from luthier.training import Run, Training
training = Training(epochs=1, batch=batch, eval_fraction=0, save_every=10**6, lr=1e-4, precision=dtype)
run = Run(model, source, lt.LoRA(rank=8), out=out, where="all-linear", training=training)
lt.train(run, progress=False, callbacks=[clock])
"""
PLAIN = """
import datasets, peft
from luthier import models
wide = dict(output_dir=out, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-4, report_to="none",
            save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), logging_steps=10**6)
rows = [json.loads(line) for line in open(source)]
"""
TRL = (
    PLAIN
    + """
import trl
base = models.load(model, dtype=dtype)
config = trl.SFTConfig(**wide, bf16=dtype == "bfloat16", gradient_checkpointing=False, max_length=1024)
lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
trl.SFTTrainer(base.model, args=config, train_dataset=datasets.Dataset.from_list(rows),
               processing_class=base.processor, peft_config=lora, callbacks=[clock]).train()
"""
)
TRAINER = (
    PLAIN
    + """
names = sorted({row["label"] for row in rows})
base = models.load(model, task="classification", dtype=dtype, labels=names)
lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS")
encoded = [{**base.processor(row["text"], truncation=True), "labels": names.index(row["label"])} for row in rows]
padded = transformers.DataCollatorWithPadding(base.processor)
transformers.Trainer(peft.get_peft_model(base.model, lora), transformers.TrainingArguments(**wide), padded,
                     datasets.Dataset.from_list(encoded), callbacks=[clock]).train()
"""
)
END = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
told = {"seconds": clock.taken[0], "cpu_seconds": clock.taken[1], "peak_mib": peak}
print(json.dumps(told | {"threads": torch.get_num_threads(), "torch": torch.__version__}))
"""


def run(code: str, *values: Any) -> dict[str, Any]:
    """The figures of one run in a process of its own."""
    words = [sys.executable, "-c", START + code + END, *map(str, values)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def contest(model: str, rows: list[dict], batch: int, dtype: str, sides: dict[str, str], rounds: int) -> dict[str, Any]:
    """Both sides in turn, `rounds` times: their runs, medians, and ratios."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(prefix="luthier-loops-") as folder:
        data = Path(folder) / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for number in range(rounds):
            for name, code in sides.items():
                found[name].append(run(code, model, data, Path(folder) / f"{name}-{number}", batch, dtype))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    kinds = ("seconds", "cpu_seconds", "peak_mib")
    medians = {kind: {name: statistics.median(r[kind] for r in runs) for name, runs in found.items()} for kind in kinds}
    ours, theirs = sides
    return {
        "model": model, "rows": len(rows), "batch": batch, "dtype": dtype, "rounds": rounds, "runs": found,
        "median": medians, "ratio": {kind: each[ours] / each[theirs] for kind, each in medians.items()},
        "processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "measured": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what data are given for, prints and writes JSON; what was measured of the others stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, help="JSONL with question and answer (GSM8K's)")
    parser.add_argument("--texts", type=Path, help="JSONL with text and label (CLINC150's)")
    parser.add_argument("--rows", type=int, default=64, help="rows of questions")
    parser.add_argument("--short", type=int, default=1024, help="rows of short texts")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of the base, for the questions")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=results_of("loops"))
    given = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.questions is not None:
        rows = questions(given.questions, given.rows)
        for dtype in given.dtypes.split(","):
            sides = {"luthier": OURS, "trl": TRL}
            found[f"questions, {dtype}"] = contest("smollm2-135m", rows, 8, dtype, sides, given.rounds)
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    if given.texts is not None:
        rows, sides = texts(given.texts, given.short), {"luthier": OURS, "trainer": TRAINER}
        found["texts"] = contest("minilm-l6", rows, 32, "float32", sides, given.rounds)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    print({name: {kind: round(value, 2) for kind, value in each["ratio"].items()} for name, each in found.items()})
