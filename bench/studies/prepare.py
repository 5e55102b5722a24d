"""The data of the studies beside this file: links to a folder of public data sets, and two files made of it.

    python bench/studies/prepare.py --data FOLDER

FOLDER holds glue/, clinc150/, commonsense/ and arithmetic/ (sources and licences: docs/results.md). Made of it are
`mawps.jsonl`, MAWPS' problems as instructions whose output is the equation and its value, `held.jsonl`, 200 short
news texts (premises of RTE) whose loss tells what a model forgot, and `intents/`, every fourth intent of CLINC150 by
name, on which a run takes half a minute, so that ten seeds of a method can be had.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parent / "data"
LINKS = ("glue", "clinc150", "commonsense", "arithmetic")
HELD, SHORTEST = 200, 200
"""Texts that are held, and their least number of characters."""


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


def intents(rows: Iterable[dict[str, Any]], names: Iterable[str]) -> list[dict[str, str]]:
    """The rows of every fourth intent."""
    chosen = set(sorted(names)[::4])
    return [row for row in rows if row["label"] in chosen]


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
    write(PLACE / "held.jsonl", held(read(folder / "glue/rte/train.jsonl")))
    names = {row["label"] for row in read(folder / "clinc150/train.jsonl")}
    (PLACE / "intents").mkdir(exist_ok=True)
    for part in ("train", "val", "test"):
        write(PLACE / "intents" / f"{part}.jsonl", intents(read(folder / f"clinc150/{part}.jsonl"), names))


if __name__ == "__main__":
    main()
