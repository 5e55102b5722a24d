"""Learning in context beside fine-tuning on SmolLM2: lines of Python, exact match of one answer and of the best of k.

Sixteen kinds of one-line tasks, whose names and numbers are drawn; a test row has neighbours of its kind among the
training rows and never itself. `compare` ranks the bare model, eight shots by BM25, eight by chance (the null of what
nearness brings) and LoRA; then four answers of each are drawn for EM@k.

    python -m bench diagnosis-shots [--steps 40] [--rows 12] [--seeds 2]
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import CHAT, asked, fit, parsed, recorded, written

import luthier as lt
from luthier import data
from luthier.core.contracts.selection import Pool

DRAWS = 4
METHODS = ["base", "icl:k=8", "icl:k=8&by=random", "lora"]
NAMES = ("xs", "items", "rows", "words", "scores", "names", "values", "parts", "lines", "cells")
KINDS = (
    ("Reverse the list {a}.", "{a}[::-1]"),
    ("Sort the list {a} from large to small.", "sorted({a}, reverse=True)"),
    ("Take the first {n} of {a}.", "{a}[:{n}]"),
    ("Take the last {n} of {a}.", "{a}[-{n}:]"),
    ("Count how often {n} is in {a}.", "{a}.count({n})"),
    ("Join the strings {a} by commas.", '",".join({a})'),
    ("Square every number of {a}.", "[x ** 2 for x in {a}]"),
    ("Keep the numbers of {a} above {n}.", "[x for x in {a} if x > {n}]"),
    ("Give the mean of {a}.", "sum({a}) / len({a})"),
    ("Give the set of {a} without {n}.", "set({a}) - {{{n}}}"),
    ("Pair each of {a} with its place.", "list(enumerate({a}))"),
    ("Say whether any of {a} is over {n}.", "any(x > {n} for x in {a})"),
    ("Map each of {a} to its length.", "{{x: len(x) for x in {a}}}"),
    ("Repeat the list {a} {n} times.", "{a} * {n}"),
    ("Give the largest of {a}, or {n}.", "max({a}, default={n})"),
    ("Remove blanks at both ends of each of {a}.", "[x.strip() for x in {a}]"),
)


def rows(count: int, seed: int, apart: Sequence[dict[str, str]] = ()) -> list[dict[str, str]]:
    """Tasks of all kinds in turns, none of them twice and none of those apart."""
    draw, found, known = random.Random(seed), [], {row["prompt"] for row in apart}
    while len(found) < count:
        task, line = KINDS[len(found) % len(KINDS)]
        chosen = {"a": draw.choice(NAMES), "n": draw.randint(2, 40)}
        row = asked(f"{task.format(**chosen)} Answer with one line of Python.", line.format(**chosen))
        if row["prompt"] not in known:
            known.add(row["prompt"])
            found.append(row)
    return found


def drawn(train: str, test: str, adapter: Path) -> dict[str, dict[str, float]]:
    """EM@k of each way, of `DRAWS` answers to a prompt."""
    tests, pool, loaded = data.load(test), Pool(data.load(train), seed=0), lt.model(CHAT)
    ways = {
        "base": tests,
        "icl:k=8": data.with_shots(lt.BM25(), tests, pool, 8),
        "icl:k=8&by=random": data.with_shots(lt.selections.Random(), tests, pool, 8),
        "lora": tests,
    }
    found = {}
    for name, rows in ways.items():
        model = lt.load(loaded.model, adapter) if name == "lora" else loaded.model
        options: dict[str, Any] = {"samples": DRAWS, "temperature": 0.8, "max_new_tokens": 24, "progress": False}
        found[name] = lt.evaluate(model, loaded.processor, rows, **options).metrics
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, then draws."""
    given = parsed(arguments, __doc__, "diagnosis-shots", steps=40, rows=12, seeds=2)
    learned = rows(80, 1)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        lines, tests = work / "lines", rows(given.rows, 2, learned)
        train, test = written(lines / "train.jsonl", learned), written(lines / "test.jsonl", tests)
        training: dict[str, Any] = {"steps": given.steps, "batch": 4, "lr": 1e-3}
        study: dict[str, Any] = {"methods": METHODS, "seeds": given.seeds, "training": training, "progress": False}
        found = lt.compare(CHAT, train, test=test, out=work / "study", **study)
        (report,) = (work / "study").glob("*.md")
        runs = [{"method": each.method, "seed": each.seed, "score": each.score} for each in found.records]
        told = {"runs": runs, "report": report.read_text(encoding="utf-8")}
        recorded(given.out, told)
        adapter = fit(CHAT, learned, work / "fitted", steps=given.steps)
        recorded(given.out, told | {"drawn": drawn(train, test, adapter)})


if __name__ == "__main__":
    main()
