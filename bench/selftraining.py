"""Self-training: what LiST adds to a few labelled reviews, and what it weighs wrong labels with.

Short reviews of SST-2 (GLUE): 32 labelled, 16 of each class, drawn by the seed, and others without labels. A small
language model learns the labelled ones (plain few-shot training), then students learn what it says of the others,
weighed as LiST does (`list`) or all alike (`equal`); all are tested on the same reviews. With `--flipped 0.3` students
learn the true labels instead, so many of them flipped, and the mean weight of these stands beside that of others.

    python -m bench selftraining --sst2 FOLDER --folder FOLDER [--ways list equal] [--seeds 0 1 2 3 4] [--flipped 0.3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench._registry import results_of
from bench.lifelong import by_label
from torch.nn.functional import one_hot

import luthier as lt
from luthier.core.records import replace_json
from luthier.training.self_training import SelfTraining, self_train
from luthier.training.self_training.run import Work

WORDS, NAMES = ("positive= great", "negative= terrible"), {"1": "positive", "0": "negative"}
LABELLED, UNLABELLED, TESTED = 16, 100, 100
"""Reviews of each class."""
LONG = 6, 80
"""The fewest words and the most characters of a review: a third of the rows are phrases of two or three words."""


def reviews(file: Path, count: int, seed: int, but: frozenset[str] = frozenset()) -> list[dict[str, str]]:
    """So many reviews of each class, drawn by the seed, without some texts."""
    found = []
    for label, rows in sorted(by_label(file).items()):
        texts = sorted(
            {row["text"] for row in rows if len(row["text"].split()) >= LONG[0] and len(row["text"]) <= LONG[1]}
        )
        drawn = random.Random(f"{seed} {label}").sample([text for text in texts if text not in but], count)
        found += [{"text": text, "label": NAMES[label]} for text in drawn]
    return found


def sets(source: Path, folder: Path, seed: int) -> dict[str, str]:
    """The files of a seed; the reviews that are tested are the same for all."""
    test = reviews(source / "dev.jsonl", TESTED, 0)
    tested = frozenset(row["text"] for row in test)
    labelled = reviews(source / "train.jsonl", LABELLED, seed, tested)
    known = tested | {row["text"] for row in labelled}
    others = reviews(source / "train.jsonl", UNLABELLED, seed + 1000, frozenset(known))
    rows = {"test": test, "labelled": labelled, "truth": others, "unlabelled": [{"text": r["text"]} for r in others]}
    files = {name: folder / f"{name}-{seed}.jsonl" for name in rows}
    for name, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
    return {name: str(file) for name, file in files.items()}


def with_flipped(truth: str, share: float, seed: int) -> tuple[list[str], list[bool]]:
    """The labels of the unlabelled reviews, and which of them are flipped."""
    labels = [json.loads(line)["label"] for line in Path(truth).read_text(encoding="utf-8").splitlines()]
    wrong = set(random.Random(f"flipped {seed}").sample(range(len(labels)), round(share * len(labels))))
    other = {"positive": "negative", "negative": "positive"}
    return [other[each] if i in wrong else each for i, each in enumerate(labels)], [
        i in wrong for i in range(len(labels))
    ]


def weighed(spec: SelfTraining, truth: str, share: float) -> dict[str, float]:
    """The mean weights of flipped and other labels, where 1 is that of equal weights."""
    labels, wrong = with_flipped(truth, share, spec.seed)
    teacher = Work.chances

    def given(self: Work, name: str) -> torch.Tensor:
        if name != "unlabelled":
            return teacher(self, name)
        return one_hot(torch.tensor([self.rows.labels.index(each) for each in labels]), len(self.rows.labels)).float()

    Work.chances = given  # what a teacher says, who errs in so many rows
    try:
        done = self_train(spec, resume=True)
    finally:
        Work.chances = teacher
    lines = (done.folder / "round-1.jsonl").read_text(encoding="utf-8").splitlines()
    held = [(json.loads(line)["weight"], flip) for line, flip in zip(lines, wrong, strict=True)]
    means = [
        np.mean([weight for weight, flip in held if flip == which and weight is not None]) for which in (True, False)
    ]
    return {"flipped": float(means[0]), "others": float(means[1]), "accuracy": done.figures["round 1"]["accuracy"]}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sst2", type=Path, required=True, help="the folder of SST-2: train.jsonl, dev.jsonl")
    parser.add_argument("--folder", type=Path, required=True, help="where runs lie, to be gone on with")
    parser.add_argument("--model", default="stories15m")
    parser.add_argument("--ways", nargs="+", default=["list", "equal"], help="list, equal")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--flipped", type=float, help="share of flipped labels; then the weights are measured")
    parser.add_argument("--teacher-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    file = results_of("selftraining")
    for seed, way in itertools.product(given.seeds, given.ways):
        begun, files = time.monotonic(), sets(given.sst2, given.folder, seed)
        key: dict[str, Any] = {"model": given.model, "way": way, "seed": seed, "flipped": given.flipped}
        key |= {"teacher steps": given.teacher_steps, "steps": given.steps, "lr": given.lr}
        spec = SelfTraining(
            given.model, files["labelled"], files["unlabelled"], lt.LoRA(rank=8), files["test"],
            str(given.folder / f"{way}-{given.flipped}-{given.steps}-{given.lr:g}-{seed}"), words=WORDS, rounds=1,
            teacher_steps=given.teacher_steps, steps=given.steps, finetune=20, shown=8, reweigh=way == "list",
            lr=given.lr, seed=seed,
        )  # fmt: skip
        if given.flipped is None:
            told: dict[str, Any] = {"figures": self_train(spec, resume=True).figures}
        else:
            told = {"weights": weighed(spec, files["truth"], given.flipped)}
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
        runs = [run for run in runs if any(run[name] != key[name] for name in key)]
        replace_json(file, {"runs": [*runs, {**key, **told, "seconds of the last start": time.monotonic() - begun}]})
        print(way, seed, told, flush=True)
