"""How many of transformers' classes each form holds on: attached, trained, saved, loaded and merged in small."""

from __future__ import annotations

import argparse
import json
import resource
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from bench import architectures
from bench.architectures.classes import FAMILIES, Known, known
from bench.architectures.laws import FORMS
from bench.architectures.report import holds, report, runs
from bench.architectures.trial import limited, tried

ROOT = Path(__file__).parents[2]
OUT = ROOT / "bench" / "results" / "architectures.jsonl"
PAGE = ROOT / "docs" / "architectures.md"
MEMORY = 24 << 30
"""Bytes of address space: a class that builds too big stops, and not the machine."""


def main(given: Sequence[str]) -> None:
    """Tries the classes that the file has no row of yet, or that were out of time, and writes the page."""
    parser = argparse.ArgumentParser(description=architectures.__doc__)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; none: all")
    parser.add_argument("--only", default="", help="names of classes or architectures, with commas")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seconds", type=int, default=60, help="of the processor, for one class")
    parser.add_argument("--report", action="store_true", help="only write the page of what is there")
    arguments = parser.parse_args(given)
    warnings.simplefilter("ignore")
    tf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for each in () if arguments.report else _todo(arguments):
        with limited(arguments.seconds):
            row = tried(each, arguments.seconds)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(_told(row), flush=True)
    rows = _rows(arguments.out)
    ran = list(filter(runs, rows))
    print(f"{sum(map(holds, ran))} of {len(ran)} classes that run hold all of {', '.join(FORMS)}")
    if arguments.out == OUT:
        PAGE.write_text(report(rows), encoding="utf-8")


def _todo(arguments: Any) -> Iterator[Known]:
    done = {
        row["name"] for row in _rows(arguments.out) if runs(row) or (not row["built"] and "Late" not in row["reason"])
    }
    only = {name for name in arguments.only.split(",") if name}
    for each in known(arguments.families):
        if each.name not in done and (not only or only & {each.name, each.type}):
            yield each


def _rows(path: Path) -> list[dict[str, Any]]:
    """The newest row of each class."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({row["name"]: row for row in map(json.loads, lines)}.values())


def _told(row: dict[str, Any]) -> str:
    if not row["built"]:
        return f"{row['name']}: not built ({row['reason'][:200]})"
    verdicts = {form: row[form] for form in FORMS if form in row and row[form]["status"] != "holds"}
    bad = [f"{form} {found['status']}: {found['reason'][:400]}" for form, found in verdicts.items()]
    return f"{row['name']} {row['seconds']} s: {' | '.join(bad) or 'holds'}"
