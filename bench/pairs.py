"""Pairs: what a DPO step takes, the reference's pass included, beside a step of TRL's DPOTrainer with peft.

Both train LoRA of rank 8 on the queries and values of SmolLM2 in float32 on the same pairs (those of `preferences`, a
capital each), the reference being the model with its adapter off, computed in every step. Each runs in a process of
its own, and they take turns; the first step is not counted. Told are the seconds of a step, the processor's time for
it (the steadier figure on a machine that is shared), and the highest resident set of the process. Records of other
sizes of a batch stay.

    python -m bench pairs [--rounds 2] [--batch 4] [--steps 4]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench._registry import results_of
from bench.preferences import MODEL, rows

START = """
import json, resource, sys, time
import torch, transformers
source, out, model, batch, steps, seed = sys.argv[1:7]
batch, steps, seed = int(batch), int(steps), int(seed)
class Ends(transformers.TrainerCallback):
    def __init__(self):
        self.wall, self.cpu = [], []
    def on_step_end(self, *args, **kwargs):
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
ends = Ends()
"""
OURS = """
import luthier as lt
from luthier.training import Run, Training
settings = Training(steps=steps, batch=batch, lr=1e-5, eval_fraction=0, save_every=10**6, seed=seed)
run = Run(model, source, lt.LoRA(rank=8), where="q_proj, v_proj", out=out, objective=lt.DPO(), training=settings)
lt.train(run, progress=False, callbacks=[ends])
"""
THEIRS = """
import datasets, peft, trl
from luthier import models
base = models.load(model)
turns = lambda role, text: [{"role": role, "content": text}]
pairs = [json.loads(line) for line in open(source)]
pairs = [{"prompt": turns("user", p["prompt"]), "chosen": turns("assistant", p["chosen"]),
          "rejected": turns("assistant", p["rejected"])} for p in pairs]
config = trl.DPOConfig(
    output_dir=out, max_steps=steps, per_device_train_batch_size=batch, beta=0.1, learning_rate=1e-5, bf16=False,
    use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no", disable_tqdm=True, seed=seed,
    gradient_checkpointing=False, logging_steps=steps,
)
lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
rows = datasets.Dataset.from_list(pairs)
trl.DPOTrainer(base.model, args=config, train_dataset=rows, processing_class=base.processor, peft_config=lora,
               callbacks=[ends]).train()
"""
END = """
spans = lambda times: [after - before for before, after in zip(times, times[1:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
told = {"seconds": spans(ends.wall), "cpu_seconds": spans(ends.cpu), "peak_mib": peak}
told |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__}
print(json.dumps(told))
"""
SIDES = {"luthier": OURS, "trl": THEIRS}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="fewer than a pass through the 40 pairs")
    parser.add_argument("--out", type=Path, default=results_of("pairs"))
    given = parser.parse_args(words)
    found: dict[str, list[dict]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "pairs.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows()[0::2]))
        for number in range(given.rounds):
            for name, code in SIDES.items():
                out = Path(scratch) / f"{name}-{number}"
                values = [str(each) for each in (source, out, MODEL, given.batch, given.steps, number)]
                done = subprocess.run(
                    [sys.executable, "-c", START + code + END, *values], capture_output=True, text=True
                )
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, {key: value for key, value in found[name][-1].items() if key[-1] != "h"}, flush=True)
    medians = {
        key: {name: statistics.median(s for run in runs for s in run[key]) for name, runs in found.items()}
        for key in ("seconds", "cpu_seconds")
    } | {"peak_mib": {name: max(run["peak_mib"] for run in runs) for name, runs in found.items()}}
    ratios = {key: values["luthier"] / values["trl"] for key, values in medians.items()}
    settings = {key: getattr(given, key) for key in ("rounds", "batch", "steps")}
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {}
    kept[f"batch {given.batch}"] = {**settings, "runs": found, "median": medians, "ratio": ratios}
    given.out.write_text(json.dumps(kept, indent=1) + "\n")
    print({key: round(value, 2) for key, value in ratios.items()})


if __name__ == "__main__":
    main()
