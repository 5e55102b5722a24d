"""Facts in SmolLM2: by heart or learnt, moved capitals that it knew, and fine-tuning beside retrieval.

Thirty facts of five invented people are fitted by LoRA and asked in other words (`memorised`); capitals that moved
count where the old one was known (`changed`); then twelve of the facts and twelve of people that were never fitted are
asked closed-book, below the passages that BM25 finds, and below those of another question (`grid`).

    python -m bench diagnosis-facts [--steps 80] [--only memorised]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of
from bench.diagnosis._fits import CHAT, examined, fit, recorded, written

import luthier as lt
from luthier.data.facts import read_facts

PEOPLE, MORE, CAPITALS = "facts:people?count=5", "facts:people?count=2&seed=9", "facts:changes?count=15"


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


def people(work: Path, steps: int, parts: Sequence[str]) -> dict[str, Any]:
    """What is told by the facts of people: by heart or learnt, and the grid."""
    known, unknown, found = rows_of(PEOPLE), rows_of(MORE), {}
    adapter = fit(CHAT, known, work / "people", form=lt.LoRA(rank=16), lr=2e-3, batch=10, steps=steps)
    if "memorised" in parts:
        probes = PEOPLE.replace("people", "people:probes")
        found["memorised"] = examined(CHAT, adapter, "finetunebench", probes)
    if "grid" in parts:
        pool = written(work / "passages.jsonl", passages([*known, *unknown]))
        asked = written(work / "asked.jsonl", [*known[:24:2], *unknown])
        found["grid"] = examined(CHAT, adapter, lt.RetrievalGrid(passages=pool, k=1), asked)
    return found


def changed(work: Path, steps: int) -> dict[str, Any]:
    """Capitals that moved: only those whose old city the model named count."""
    adapter = fit(CHAT, rows_of(CAPITALS), work / "capitals", form=lt.LoRA(rank=16), lr=2e-3, batch=5, steps=steps)
    return {"changed": examined(CHAT, adapter, "finetunebench", CAPITALS.replace("changes", "changes:probes"))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits and asks; what was found before stays."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--only", nargs="+", choices=("memorised", "grid", "changed"), default=["memorised", "grid", "changed"]
    )
    parser.add_argument("--out", type=Path, default=results_of("diagnosis-facts"))
    given = parser.parse_args(arguments)
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        if set(given.only) - {"changed"}:
            found |= people(Path(scratch), given.steps, given.only)
        if "changed" in given.only:
            found |= changed(Path(scratch), given.steps)
    recorded(given.out, found)


if __name__ == "__main__":
    main()
