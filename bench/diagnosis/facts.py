"""Facts in SmolLM2: by heart or learnt, moved capitals that it knew, and fine-tuning beside retrieval.

Thirty facts of five invented people are fitted by LoRA and asked in other words (`memorised`); capitals that moved
count where the old one was known (`changed`); then twelve of the facts and twelve of people that were never fitted are
asked closed-book, below the passages that BM25 finds (`grid`) or MiniLM (`dense`), and below those of another question.

    python -m bench diagnosis-facts [--steps 60] [--seeds 0 1 2] [--only memorised]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.diagnosis._fits import CHAT, examined, fit, run_parts, written

import luthier as lt
from luthier.data.facts import read_facts

PEOPLE, MORE, CAPITALS = "facts:people?count=5", "facts:people?count=2", "facts:changes?count=15"


def rows_of(source: str) -> list[dict[str, Any]]:
    """The rows of a source of facts."""
    return [dict(row) for _, row in read_facts(source, "train").rows]


def passages(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A passage on each person, of all their facts."""
    found: dict[str, list[str]] = {}
    for row in rows:
        name, key = row["fact"].split(": ")
        found.setdefault(name, []).append(f"The {key} of {name} is {row['completion']}.")
    return [{"passage": " ".join(each)} for each in found.values()]


def learned(rows: Sequence[dict[str, Any]], out: Path, batch: int, steps: int, seed: int) -> Path:
    """The adapter that has learned the rows; it is made once."""
    if (out / "adapter").exists():
        return out / "adapter"
    return fit(CHAT, rows, out, form=lt.LoRA(rank=16), lr=2e-3, batch=batch, steps=steps, seed=seed)


def memorised(work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Facts of people, by heart or learnt."""
    people = f"{PEOPLE}&seed={seed}"
    adapter = learned(rows_of(people), work / "people", 10, steps, seed)
    return examined(CHAT, adapter, "finetunebench", people.replace("people", "people:probes"))


def grid(work: Path, steps: int, seed: int, encoder: str | None = None) -> dict[str, Any]:
    """Facts that were fitted and others, with passages and without; passages by their words, or by an encoder."""
    known, unknown = rows_of(f"{PEOPLE}&seed={seed}"), rows_of(f"{MORE}&seed={seed + 9}")
    adapter = learned(known, work / "people", 10, steps, seed)
    pool = written(work / "passages.jsonl", passages([*known, *unknown]))
    asked = written(work / "asked.jsonl", [*known[: 2 * len(unknown) : 2], *unknown])
    by = lt.RetrievalGrid(passages=pool, k=1, max_new_tokens=16, encoder=encoder, seed=seed)
    return examined(CHAT, adapter, by, asked)


def dense(work: Path, steps: int, seed: int) -> dict[str, Any]:
    """The same with passages by the mean states of MiniLM."""
    return grid(work, steps, seed, "minilm-l6")


def changed(work: Path, steps: int, seed: int) -> dict[str, Any]:
    """Capitals that moved: only those whose old city the model named count."""
    capitals = f"{CAPITALS}&seed={seed}"
    adapter = learned(rows_of(capitals), work / "capitals", 5, steps, seed)
    return examined(CHAT, adapter, "finetunebench", capitals.replace("changes", "changes:probes"))


PARTS = {"grid": grid, "dense": dense, "changed": changed, "memorised": memorised}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits and asks; what was found before stays."""
    run_parts(arguments, __doc__, "diagnosis-facts", PARTS, 60)


if __name__ == "__main__":
    main()
