"""Rollouts: what a GRPO step takes, sampling included, beside a step of TRL's GRPOTrainer with peft.

Both train LoRA of rank 8 on the queries and values of SmolLM2 in float32, on the same prompts of a gym task, with the
same number of answers and tokens, temperature 1 and a KL term. Rounds alternate between the two; the first step of each
round is not counted, and a step is the time between the ends of two, of the clock and of the processor (the steadier
figure on a machine that is shared). TRL generates by transformers.

    python -m bench rollouts [--rounds 2] [--prompts 2] [--group 4] [--tokens 12]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from bench._registry import results_of

import luthier as lt
from luthier import data, models
from luthier.methods.objectives.grpo import GRPO
from luthier.training import Run, Training
from luthier.training.session import Session

MODEL, TASK, STEPS = "smollm2-135m", "gym:spell_backward?max_word_len=6", 3


class Ends(transformers.TrainerCallback):
    """The times at which steps end."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def steps(self) -> list[tuple[float, float]]:
        """Seconds of each step but the first, and the processor's."""
        return [(wall - a, cpu - b) for (a, b), (wall, cpu) in zip(self.times, self.times[1:], strict=False)]


def ours(given: argparse.Namespace, folder: Path, seed: int) -> list[tuple[float, float]]:
    ends = Ends()
    chosen = GRPO(group=given.group, max_tokens=given.tokens, beta=0.04)
    settings = Training(steps=STEPS, batch=given.prompts, lr=1e-5, eval_fraction=0, save_every=1000, seed=seed)
    form = lt.LoRA(rank=8)
    run = Run(MODEL, TASK, form, where="q_proj, v_proj", out=str(folder), objective=chosen, training=settings, limit=64)
    Session(run, progress=False, callbacks=[ends]).train(resume=False, overwrite=True)
    return ends.steps()


def theirs(given: argparse.Namespace, folder: Path, seed: int) -> list[tuple[float, float]]:
    import datasets
    import peft
    import trl

    ends, base = Ends(), models.load(MODEL)
    examples = data.load(TASK, limit=64)
    scorer = examples.scorer
    assert scorer is not None
    rows = [{"prompt": row.messages[:1], "place": i} for i, row in enumerate(examples.rows) if row.messages]

    def reward(completions: list, place: list[int], **_: Any) -> list[float | None]:
        texts = [each[0]["content"] for each in completions]
        return [scorer.score(text, examples.rows[i]) for text, i in zip(texts, place, strict=True)]

    config = trl.GRPOConfig(  # pyright: ignore[reportPrivateImportUsage]
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=given.prompts * given.group,
        num_generations=given.group, max_completion_length=given.tokens, temperature=1.0, beta=0.04, learning_rate=1e-5,
        loss_type="grpo", bf16=False, use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no",
        disable_tqdm=True, seed=seed, gradient_checkpointing=False, logging_steps=STEPS,
    )  # fmt: skip
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = trl.GRPOTrainer(  # pyright: ignore[reportPrivateImportUsage]
        base.model, reward_funcs=reward, args=config, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=base.processor, peft_config=lora, callbacks=[ends],
    )  # fmt: skip
    trainer.train()
    return ends.steps()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--out", type=Path, default=results_of("rollouts"))
    given = parser.parse_args(words)
    found: dict[str, list[tuple[float, float]]] = {"luthier": [], "trl": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(given.rounds):
            found["luthier"] += ours(given, Path(scratch) / f"ours-{number}", number)
            found["trl"] += theirs(given, Path(scratch) / f"theirs-{number}", number)
            print({name: [[round(s, 2) for s in step] for step in steps] for name, steps in found.items()}, flush=True)
    seconds, cpu = ({name: [step[i] for step in steps] for name, steps in found.items()} for i in (0, 1))
    median, median_cpu = ({name: statistics.median(s) for name, s in each.items()} for each in (seconds, cpu))
    settings = {key: getattr(given, key) for key in ("rounds", "prompts", "group", "tokens")}
    threads = {"threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__}
    ratio, cpu_ratio = (each["luthier"] / each["trl"] for each in (median, median_cpu))
    result = {**settings, **threads, "seconds": seconds, "median": median, "ratio": ratio}
    result |= {"cpu_seconds": cpu, "median_cpu": median_cpu, "cpu_ratio": cpu_ratio}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"a step: {median['luthier']:.2f} s, TRL {median['trl']:.2f} s, ratio {ratio:.2f}; of the processor's time "
          f"{cpu_ratio:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
