"""Unlearning: how near each way comes to a classifier that was retrained without wrongly labelled rows.

Four intents of CLINC150 (CC-BY 3.0), ten rows of each, in which a few rows bear the label of another intent: MiniLM
with LoRA learns them by heart, and they are the rows to forget. KLOM less its null is over models of other seeds, which
all ways share; beside it stand the accuracy on retained and new rows and the membership test. Of rows with wrong labels
and new ones with right labels the value is below 0.5 where nothing is remembered, so it is to be read beside that of
retraining.

    python -m bench unlearning --data FOLDER --folder FOLDER [--by retrain dmm ascent kl] [--models 5]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.lifelong import by_label

import luthier as lt
from luthier.core.contracts.component import find
from luthier.core.contracts.unlearning import Unlearning
from luthier.core.records import replace_json
from luthier.training import Run, Training, train
from luthier.training.unlearning import Unlearn, unlearn
from luthier.training.unlearning import run as run_

MODEL, INTENTS, ROWS, WRONG, TESTS = "minilm-l6", 4, 10, 2, 10
"""`WRONG` rows of each intent bear the label of the next one."""
SETTINGS = Training(epochs=20, batch=16, lr=2e-3, max_length=64, eval_fraction=0.0, save_every=100)


def sets(source: Path, folder: Path) -> dict[str, str]:
    """The files: all rows that are learned, those to forget, the others, and new rows."""
    learned, new = by_label(source / "train.jsonl"), by_label(source / "test.jsonl")
    names = sorted(learned)[:INTENTS]
    forget, retain = [], []
    for place, name in enumerate(names):
        for number, row in enumerate(learned[name][:ROWS]):
            wrong = number < WRONG
            label = names[(place + 1) % INTENTS] if wrong else name
            (forget if wrong else retain).append({"text": row["text"], "label": label})
    test = [row for name in names for row in new[name][:TESTS]]
    rows = {"all": forget + retain, "forget": forget, "retain": retain, "test": test}
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def sharing(folder: Path) -> None:
    """Lets all ways be measured with the same models of the other kinds: only what is unlearned differs."""
    true = run_.klom_figures

    def measured(spec: Unlearn, run: Run, own: Path, *rest: Any) -> dict[str, dict[str, float]]:
        kept = folder / f"models-{spec.models}"
        unlearned = shutil.ignore_patterns("unlearned-*")
        if kept.exists() and not any(own.iterdir()):
            shutil.copytree(kept, own, dirs_exist_ok=True)
        found = true(spec, run, own, *rest)
        if not kept.exists():
            shutil.copytree(own, kept, ignore=unlearned)
        return found

    run_.klom_figures = measured


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of CLINC150: train.jsonl, test.jsonl")
    parser.add_argument("--folder", type=Path, required=True, help="where runs lie, to be gone on with")
    parser.add_argument("--by", nargs="+", default=["dmm", "ascent", "kl", "retrain"])
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    files, file = sets(given.data, given.folder), results_of("unlearning")
    run = Run(MODEL, files["all"], lt.LoRA(rank=8), out=str(given.folder / "run"), training=SETTINGS)
    if not (given.folder / "run" / "adapter").exists():
        train(run, resume=(given.folder / "run" / "run.json").exists(), progress=False)
    sharing(given.folder)
    for by in given.by:
        begun, out = time.monotonic(), given.folder / f"{by}-{given.models}-{given.steps}-{given.lr:g}"
        spec = Unlearn(run.out, files["forget"], files["retain"], find("unlearnings", by, Unlearning)(), out=str(out),
                       test=files["test"], steps=given.steps, lr=given.lr, models=given.models)  # fmt: skip
        done = unlearn(spec, resume=True)
        key = {"by": by, "models": given.models, "steps": given.steps, "lr": given.lr}
        told = {**key, "figures": done.figures, "seconds of the last start": time.monotonic() - begun}
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
        replace_json(file, {"runs": [each for each in runs if any(each[name] != key[name] for name in key)] + [told]})
        for name, each in done.figures.items():
            print(by, name, {when: round(value, 3) for when, value in each.items()}, flush=True)
