"""Peak memory of the commands that make files of a model and its adapter, on a Llama larger than the memory they take.

A Llama of random bfloat16 weights in several files (2.2 GB with 22 blocks), with a LoRA of rank 8 on queries and
values. Each command is a process of its own, and told is its highest resident set, mapped files included.

python -m bench larger [--blocks 22] [--only merge peft] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from bench._registry import results_of

COMMANDS = {
    "merge": "merge {base} {adapter} {out}",
    "peft": "export {adapter} {out} --to peft --model {base}",
    "merged": "export {adapter} {out} --to merged --model {base}",
    "gguf": "export {adapter} {out} --to gguf --model {base}",
    "convert": "convert {adapter} {out} --to peft --model {base}",
    "combine": "combine task_arithmetic {adapter} {adapter} --base {base} --out {out}",
    "combine, merged": "combine task_arithmetic {adapter} {adapter} --base {base} --out {out} --merged",
    "examine": "examine {adapter} --by intruders --base {base} --out {out}",
}


def make(blocks: int, base: Path, adapter: Path) -> None:
    """Writes the model and its adapter, away from its start."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import luthier as lt
    from luthier import models

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=blocks, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02) if parameter.dim() > 1 else parameter.data.fill_(1.0)
    model.save_pretrained(base, max_shard_size="600MB")
    models.load("stories15m").processor.save_pretrained(base)
    adapted = lt.attach(models.load(str(base), dtype="auto").model, lt.LoRA(rank=8), where="q_proj, v_proj")
    for parameter in lt.trainable(adapted).values():
        parameter.data.normal_(0, 0.02)
    lt.save(adapted, adapter)


def peak(words: Sequence[str]) -> dict[str, float]:
    """{MiB, seconds, seconds of the processor} of a process."""
    began = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said)
    cpu = used.ru_utime + used.ru_stime
    return {
        "peak_mib": round(used.ru_maxrss / 1024), "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(cpu, 1),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the model where it is not there, runs, prints and writes JSON; what was measured of others stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS], default=[*COMMANDS])
    parser.add_argument("--work", type=Path, help="where the model lies or is to lie (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=results_of("larger"))
    given = parser.parse_args(arguments)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="luthier-larger-", dir=given.work) as scratch:
        home = given.work or Path(scratch)
        base, adapter = home / "base", home / "base-adapter"
        if not base.exists():
            made = get_context("spawn").Process(target=make, args=(given.blocks, base, adapter))
            made.start()  # a process begins with the peak of its parent, so that of the commands stays small
            made.join()
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        runs = found.setdefault(f"{size / 1e9:.1f} GB", {})
        for name in given.only:
            text = COMMANDS[name].format(base=base, adapter=adapter, out=Path(scratch) / name.replace(", ", "-"))
            runs[name] = peak([sys.executable, "-m", "luthier", *text.split()])
            print(name, runs[name], flush=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n")
