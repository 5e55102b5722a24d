"""Meta-learning: whether one demonstration helps more after first-order MAML than after joint training.

Domains are tasks of reasoning-gym with short prompts, whose answers differ in form; four of them are never learned.
A small language model with LoRA is trained by `luthier meta` with several seeds; in each episode of the new domains the
joint training and the meta-learner adapt to the same demonstration, or read it before the prompt. Joint training takes
the inner rate that the meta-learner was trained with; several rates can be run.

    python -m bench meta --folder FOLDER [--model stories15m] [--inner-lr 0.03] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench._registry import results_of

import luthier as lt
from luthier import data
from luthier.core.files import replace_json
from luthier.training.meta import MetaRun, meta_learn

LEARNED = ("chain_sum", "spell_backward", "gcd", "lcm", "letter_counting", "base_conversion", "prime_factorization",
           "count_bits", "leg_counting")  # fmt: skip
NEW = ("basic_arithmetic", "products", "word_sequence_reversal", "power_function")
ROWS = 40


def domain(task: str, folder: Path) -> str:
    """The file of a domain's rows, made once."""
    file = folder / f"{task}.jsonl"
    if not file.exists():
        rows = data.load(f"gym:{task}", task="causal-lm", seed=0, limit=ROWS).rows
        said = [[str(turn["content"]) for turn in row.messages or []] for row in rows]
        told = (json.dumps({"prompt": turns[0], "completion": turns[-1]}) + "\n" for turns in said)
        file.write_text("".join(told), encoding="utf-8")
    return str(file)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs lie, to be gone on with")
    parser.add_argument("--model", default="stories15m")
    parser.add_argument("--inner-lr", nargs="+", type=float, default=[0.03])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=2e-3)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    learned, new = ([domain(task, given.folder) for task in tasks] for tasks in (LEARNED, NEW))
    file = results_of("meta")
    for seed in given.seeds:
        for rate in given.inner_lr:
            begun = time.monotonic()
            spec = MetaRun(given.model, tuple(learned), tuple(new), lt.metas.FOMAML(inner_lr=rate), lt.LoRA(rank=8),
                           str(given.folder / f"{rate:g}-{seed}"), shots=1, asked=2, together=2, steps=given.steps,
                           lr=given.lr, episodes=10, max_length=128, save_every=10, seed=seed)  # fmt: skip
            done = meta_learn(spec, resume=True)
            key = {"model": given.model, "inner rate": rate, "seed": seed, "steps": given.steps, "lr": given.lr}
            told = {
                **key,
                "figures": done.figures,
                "gains": done.gains,
                "seconds of the last start": time.monotonic() - begun,
            }
            runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
            runs = [run for run in runs if any(run[name] != key[name] for name in key)] + [told]
            replace_json(file, {"runs": runs})
            for way, gain in done.gains.items():
                print(rate, seed, way, {name: round(value, 4) for name, value in gain.items()}, flush=True)
