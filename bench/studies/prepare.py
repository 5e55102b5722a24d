"""The data of the studies beside this file: links to a folder of public data sets, and what is made of it.

    python bench/studies/prepare.py --data FOLDER

FOLDER holds glue/, clinc150/, commonsense/ and arithmetic/ (sources and licences: docs/results.md). Made of it are
`mawps.jsonl`, MAWPS' problems as instructions whose output is the equation and its value, and `held.jsonl`, 200 short
news texts (premises of RTE) whose loss tells what a model forgot. `intents/` holds every sixth of CLINC150's intents,
with 20 rows of each to train on, 10 to validate and 30 to test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "data"
LINKS = ("glue", "clinc150", "commonsense", "arithmetic")
HELD, SHORTEST = 200, 200
"""Texts that are held, and their least number of characters."""
PARTS = {"train": ("train", 20), "val": ("validation", 10), "test": ("test", 30)}
"""Of CLINC150's parts, the name here and the rows of an intent that are taken, the first ones."""


def mawps(row: dict[str, Any]) -> dict[str, str]:
    """A problem as the other arithmetic sets have it."""
    answer = f"{float(row['ans']):g}"
    equation = re.sub(r"\.0\b", "", row["equation"].partition("=")[2])
    return {
        "instruction": row["original_text"],
        "input": "",
        "output": f"\nA: {equation} = {answer}. The answer is {answer}.",
        "answer": answer,
    }


def held(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """The first long premises, each once."""
    texts = dict.fromkeys(row["text"] for row in rows if len(row["text"]) >= SHORTEST)
    return [{"text": text} for text in list(texts)[:HELD]]


def few(rows: list[dict[str, Any]], intents: set[str], count: int) -> list[dict[str, Any]]:
    """The first rows of each intent."""
    left = dict.fromkeys(intents, count)
    found = []
    for row in rows:
        if left.get(row["label"]):
            left[row["label"]] -= 1
            found.append(row)
    return found


def intents(folder: Path) -> None:
    """Writes `intents/`."""
    parts = {part: read(folder / f"{part}.jsonl") for part in PARTS}
    chosen = set(itertools.islice(sorted({row["label"] for row in parts["train"]}), 0, None, 6))
    (PLACE / "intents").mkdir(exist_ok=True)
    for part, (name, count) in PARTS.items():
        write(PLACE / "intents" / f"{name}.jsonl", few(parts[part], chosen, count))


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    folder = parser.parse_args().data.resolve()
    PLACE.mkdir(exist_ok=True)
    for name in LINKS:
        if not (folder / name).is_dir():
            parser.error(f"{folder} has no folder {name}")
        (PLACE / name).unlink(missing_ok=True)
        (PLACE / name).symlink_to(folder / name)
    write(PLACE / "mawps.jsonl", map(mawps, read(folder / "arithmetic/mawps/train.jsonl")))
    intents(folder / "clinc150")
    write(PLACE / "held.jsonl", held(read(folder / "glue/rte/train.jsonl")))


if __name__ == "__main__":
    main()
