"""Editing: 200 made-up facts into one tensor of SmolLM2, breadth first and depth first, and what else changed.

Facts give countries the cities of others; each has a rephrased prompt and a neighbour prompt about another thing. The
first 50 are written depth first too, as editing pipelines do it. `--where searched` lets the place be searched first.
Each run goes on where it was stopped.

    python -m bench editing --folder FOLDER [--by locft_bf depth_first] [--count 200] [--where SELECTOR]
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bench._registry import results_of
from bench.preferences import CAPITALS
from bench.speed.machine import about

import luthier as lt
from luthier import data
from luthier.core.adapters.control import disabled
from luthier.core.contracts.component import find
from luthier.core.contracts.editing import Editing
from luthier.core.numerics.resampling import mean_interval
from luthier.core.records import read_json, replace_json
from luthier.evaluating import evaluate
from luthier.training.editing import Edit, Edited, edit
from luthier.training.editing.run import SPEC

MODEL, WHERE = "smollm2-135m", "params(model.layers.20.mlp.down_proj.weight)"
RELATIONS = (
    ("The capital of {} is", "{}'s capital city is", "The main language of {} is"),
    ("The oldest bridge of {} stands in", "To see {}'s oldest bridge, go to", "The longest river of {} is"),
    ("The chess club of {} meets in", "{}'s chess club has its home in", "The flag of {} shows"),
)
"""(prompt, rephrased, neighbour)."""
HELD = ("csv", "heapq")
"""Modules whose docstrings are the held text."""


def facts() -> list[dict[str, str]]:
    """Three facts for each country, each with the city of another one."""
    pairs = [pair.split(" ") for pair in CAPITALS.strip().replace("\n", "|").split("|")]
    names = [(country.replace("_", " "), city.replace("_", " ")) for country, city in pairs]
    found = []
    for number, (prompt, other, near) in enumerate(RELATIONS):
        for i, (country, _) in enumerate(names):
            target = names[(i + 11 + 13 * number) % len(names)][1]
            found.append(
                {
                    "prompt": prompt.format(country),
                    "target": target,
                    "rephrased": other.format(country),
                    "neighbours": near.format(country),
                }
            )
    return found


def abilities(done: Edited, sources: Sequence[str]) -> dict[str, dict[str, float]]:
    """What else the model scores without the edit and with it, and how many rows changed sides."""
    found = {}
    for source in sources:
        rows = data.load(source, split="test", limit=32, task="causal-lm")
        after, before = evaluated(done, rows), None
        with disabled(done.model):
            before = evaluated(done, rows)
        low, high = mean_interval(after - before, 0)
        found[source] = {"before": before.mean(), "after": after.mean(), "count": len(after), "low": low, "high": high}
    return found


def evaluated(done: Edited, rows: data.Examples) -> np.ndarray:
    """The score of each row."""
    told = evaluate(done.model, done.processor, rows, progress=False, max_new_tokens=12, batch=32)
    return np.array([line["score"] for line in told.predictions], dtype=float)


KEY = ("by", "facts", "where", "lr", "batch", "epochs", "search_layers", "search_facts")
"""What a run is known by; a searched place is another run than the same place given."""


def kept(runs: Sequence[dict], told: dict) -> list[dict]:
    """The runs with this one, which takes the place of an earlier one like it."""
    return [run for run in runs if any(run.get(key) != told.get(key) for key in KEY)] + [told]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where runs lie, to be gone on with")
    parser.add_argument("--by", nargs="+", default=["locft_bf", "depth_first"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--where", default=WHERE, help="a selector, or `searched`")
    parser.add_argument("--search-layers", type=int, default=4, help="blocks that are tried, where it is searched")
    parser.add_argument("--search-facts", type=int, default=16, help="facts that each place is tried with")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=100, help="facts of a step, breadth first")
    parser.add_argument("--epochs", type=int, default=25, help="most epochs, breadth first")
    parser.add_argument(
        "--abilities", nargs="*", default=[], help="data that are scored before and after, gym:chain_sum"
    )
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    source, held = given.folder / "facts.jsonl", given.folder / "held.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in facts()), encoding="utf-8")
    texts = [inspect.getdoc(__import__(name)) or "" for name in HELD]
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    file = results_of("editing")
    for by in given.by:
        begun = time.monotonic()
        search = {"search_layers": given.search_layers, "search_facts": given.search_facts}
        search = search if given.where == "searched" else {}
        out = given.folder / "-".join(map(str, [by, given.count, f"{given.lr:g}", given.batch, *search.values()]))
        batch = {"batch": given.batch, "epochs": given.epochs} if by == "locft_bf" else {}
        method = find("editings", by, Editing).from_dict({"lr": given.lr, **batch})
        spec = Edit(MODEL, str(source), method, lt.Full(), out=str(out), where=None if search else given.where,
                    limit=given.count, held=str(held), micro_batch=50, **search)  # fmt: skip
        done = edit(spec, resume=True)
        told = {"by": by, "facts": done.facts, "where": done.where, "lr": given.lr, **batch, "steps": done.steps}
        told |= search and {"tried": read_json(out / SPEC)["search"]["tried"], **search}
        told |= {"rounds": done.rounds, "figures": done.figures, "seconds of the last start": time.monotonic() - begun}
        told["machine"] = about()
        told["figures"] |= abilities(done, given.abilities)
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []  # others may have added
        replace_json(file, {"runs": kept(runs, told)})
        print(json.dumps(told), flush=True)
