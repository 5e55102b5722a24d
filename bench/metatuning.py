"""Meta-tuning: what questions about some groups of data sets tell of a group that was left out.

SST-2 (GLUE) and three groups of CLINC150's intents (CC-BY 3.0), one question for each class, asked of MiniLM as a
classifier of yes and no with LoRA; each group is left out in turn, beside the untuned model and as many steps on one
set.

    python -m bench metatuning --clinc FOLDER --sst2 FOLDER [--steps 60] [--seeds 0 1 2] [--folder WORK]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench._registry import results_of

import luthier as lt
from luthier import data
from luthier.comparing.left_out import leave_out
from luthier.core.records import replace_json
from luthier.training import Run, Training

MODEL, ROWS = "minilm-l6", 20
ASKED = {
    "banking": {
        "balance": "Does the user ask how much money there is?",
        "transfer": "Does the user want to move money?",
        "pay_bill": "Does the user want to pay a bill?",
        "pin_change": "Does the user want another PIN?",
    },
    "travel": {
        "book_flight": "Is this about booking a flight?",
        "car_rental": "Is this about renting a car?",
        "lost_luggage": "Is this about lost bags?",
        "exchange_rate": "Is this about exchanging currencies?",
    },
    "kitchen": {
        "recipe": "Do they want to know how a dish is made?",
        "calories": "Do they want to know the calories of food?",
        "restaurant_reservation": "Do they want a table at a restaurant?",
        "shopping_list": "Do they speak of a shopping list?",
    },
    "sentiment": {"1": "Is the review positive?", "0": "Is the review negative?"},
}
"""The question of each class, by group."""


def questions(group: str, file: Path, folder: Path) -> str:
    """The set of a group: the first rows of each of its classes, with every question of it."""
    labels, counts, kept = ASKED[group], dict.fromkeys(ASKED[group], 0), []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = str(row["label"])
        if name in labels and counts[name] < ROWS:
            counts[name] += 1
            kept.append({"text": row["text"], "label": name})
    source, told, out = (folder / f"{group}{end}" for end in (".rows.jsonl", ".toml", ".jsonl"))
    source.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    described = "".join(f"{name} = {json.dumps(question)}\n" for name, question in labels.items())
    told.write_text(f'group = "{group}"\n[labels]\n{described}', encoding="utf-8")
    rows, by = data.load(str(source), task="classification"), lt.rewrites.YesNo(descriptions=str(told), gives="labels")
    lt.rewrite(None, None, rows, by=by, out=out, overwrite=True)
    return str(out)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clinc", type=Path, required=True, help="the folder of CLINC150: train.jsonl")
    parser.add_argument("--sst2", type=Path, required=True, help="the folder of SST-2: dev.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, help="where the runs lie, to be gone on with. Default: a temporary one")
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            group: (given.sst2 / "dev.jsonl" if group == "sentiment" else given.clinc / "train.jsonl")
            for group in ASKED
        }
        sets = [questions(group, file, folder) for group, file in files.items()]
        for seed in given.seeds:
            measured(sets, folder, given.steps, seed)


def measured(sets: Sequence[str], folder: Path, steps: int, seed: int) -> None:
    """Leaves each group out once, and notes what came of it."""
    begun, file = time.monotonic(), results_of("metatuning")
    settings = Training(steps=steps, batch=16, lr=1e-3, eval_fraction=0.0, max_length=64, seed=seed, save_every=30)
    run = Run(MODEL, sets[0], lt.LoRA(rank=8), out=str(folder / f"run-{steps}-{seed}"), training=settings)
    done = leave_out(run, list(sets), resume=True, progress=False)
    key = {"model": MODEL, "steps": steps, "seed": seed, "rows of a class": ROWS}
    areas = {
        group: {way: {Path(name).name: area for name, area in each.items()} for way, each in ways.items()}
        for group, ways in done.areas.items()
    }
    told = {**key, "figures": done.figures, "areas": areas, "seconds": time.monotonic() - begun}
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
    runs = [each for each in runs if any(each[name] != key[name] for name in key)] + [told]
    replace_json(file, {"runs": runs})
    for group, ways in done.figures.items():
        shown = {way: f"{each['auc']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for way, each in ways.items()}
        print(seed, group, shown, flush=True)
