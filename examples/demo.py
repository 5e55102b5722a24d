"""The main job: a small language model learns a skill that it lacks, and ships it.

SmolLM2-135M-Instruct is asked to reverse lists of three to eight words (reasoning-gym's word_sequence_reversal).
It cannot; after WeGeFT has generated a change of its weights from its weights (491,520 parameters, shared per
module type), it can. Everything below is measured: the score on problems that are not in the training data, before
and after; the adapter saved, loaded onto a fresh base, and merged.

    python examples/demo.py [--seed 0] [--steps 150] [--out runs/demo]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import luthier as lt
from luthier import data
from luthier.evaluating import Evaluation
from luthier.training import Training

MODEL = "smollm2-135m"
WHERE = "q_proj, k_proj, v_proj, up_proj, down_proj"
TASK = "gym:word_sequence_reversal"
TESTED = 200
NEW_TOKENS = 40
"""The longest answer has 22 tokens."""

console = Console()


def examples(training: int) -> tuple[str, data.Examples]:
    """(source of the training problems, test problems whose question is not among them)."""
    source = f"{TASK}?size={training}"
    test = data.load(f"{TASK}?size={TESTED + 20}", split="test")
    fresh = data.without(test, data.load(source))
    return source, fresh.keep(fresh.rows[:TESTED])


def score(model, processor, test: data.Examples) -> Evaluation:
    """Greedy answers that reasoning-gym's scorer takes as right; its partial credit does not count."""
    graded = data.scorer_for(test)
    right = data.Scorer("right", lambda answer, example: float(graded.score(answer, example) == 1.0))
    return lt.evaluate(model, processor, test, scorer=right, batch=50, max_new_tokens=NEW_TOKENS)


def answers(model, processor, test: data.Examples, count: int = 8) -> list[str]:
    """What the model says to the first problems."""
    prompts = [row.messages[:-1] for row in test.rows[:count]]
    return lt.generate(model, processor, prompts, max_new_tokens=NEW_TOKENS)


def main() -> None:
    """Measures, fits, saves, loads, merges, and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    started = time.monotonic()

    base = lt.model(MODEL)
    training = Training(steps=options.steps, batch=8, lr=1e-3, eval_fraction=0.0, seed=options.seed)
    source, test = examples(training.batch * options.steps)
    console.rule(f"{MODEL} before")
    before = score(base.model, base.processor, test)
    told = answers(base.model, base.processor, test, 1)[0]
    console.print(f"{before.score:.1%} of {before.count} problems")

    console.rule("fitting WeGeFT")
    form = lt.WeGeFT(rank=64, alpha=128.0, share="type")
    result = lt.train(
        model=MODEL, data=source, form=form, where=WHERE, out=str(options.out), training=training, overwrite=True
    )

    console.rule("after")
    after = score(result.model, result.processor, test)
    fitted = answers(result.model, result.processor, test)
    loaded = answers(lt.load(base.model, result.adapter), base.processor, test)
    merged = answers(lt.merge(result.model), result.processor, test)

    table = Table("model", "exact answers", "95% interval", title=test.source)
    for name, found in (("base", before), ("with WeGeFT", after)):
        low, high = found.interval
        table.add_row(name, f"{found.score:.1%} of {found.count}", f"{low:.1%} to {high:.1%}")
    console.print(table)
    console.print(f"[bold]asked[/]   {test.rows[0].messages[0]['content']}", highlight=False)
    for name, text in (("base", told), ("fitted", fitted[0]), ("loaded", loaded[0]), ("merged", merged[0])):
        console.print(f"[bold]{name:7s}[/] {text.strip()!r}", highlight=False)
    minutes = (time.monotonic() - started) / 60
    kept = sum(a == b == c for a, b, c in zip(fitted, loaded, merged, strict=True))
    console.print(f"{kept} of {len(fitted)} answers are the same fitted, loaded and merged")
    console.print(f"{result.trainable:,} trained parameters; {minutes:.1f} minutes; adapter in {result.adapter}")
    figures = {
        "before": before.score, "after": after.score, "interval": after.interval, "count": after.count,
        "same_answers": kept, "trained": result.trainable, "steps": options.steps, "seed": options.seed,
        "training_seconds": round(result.seconds, 1), "minutes": round(minutes, 2),
    }  # fmt: skip
    (options.out / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    if after.score - before.score < 0.5 or kept < len(fitted):
        raise SystemExit("the demo did not do what it is to show; see the table above")


if __name__ == "__main__":
    main()
