"""Lifelong: what a sequence of tasks forgets by each way to keep it, and what each way costs a step.

CLINC150's intents (CC-BY 3.0) in groups, one task each, learned one after another by MiniLM with LoRA; after each task
the model is tested on all. With `--sst2`, three sets that call other things 0 and 1: reviews, and two pairs of intents.
`--cost` times optimiser steps instead, all ways taking turns within each round, and the Fisher information of single
rows beside an ordinary backward pass of the same rows.

    python -m bench lifelong --data FOLDER [--by naive replay ewc] [--weight ewc=100] [--seeds 0 1 2] [--sst2 FOLDER]
    python -m bench lifelong --data FOLDER --sst2 FOLDER --by naive replay --rows 24 --epochs 16
    python -m bench lifelong --data FOLDER --cost
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of

import luthier as lt
from luthier import data
from luthier.core.records import replace_json
from luthier.evaluating import evaluate
from luthier.training import Run, Training
from luthier.training.row_gradients import fisher_diagonal
from luthier.training.sequences import TaskSequence, carry_out
from luthier.training.sequences.spec import ways

MODEL, GROUPS, INTENTS, ROWS, TESTS, EPOCHS = "minilm-l6", 5, 3, 12, 8, 8
SETTINGS = Training(epochs=EPOCHS, batch=12, lr=2e-3, max_length=64, save_every=20)
PAIRS = (("balance", "transfer"), ("calories", "recipe"))
"""The intents that are 0 and 1 in the second and the third of the sets that conflict."""


def by_label(file: Path) -> dict[str, list[dict]]:
    """The rows of each class."""
    by: dict[str, list[dict]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by.setdefault(str(row["label"]), []).append(row)
    return by


def grouped(source: Path, folder: Path, rows: int, split: str) -> list[str]:
    """A file for each group: the first intents by name, so many rows of each."""
    by = by_label(source / f"{split}.jsonl")
    names = sorted(by)[: GROUPS * INTENTS]
    groups = [names[group * INTENTS : (group + 1) * INTENTS] for group in range(GROUPS)]
    return written(folder, split, [[row for name in group for row in by[name][:rows]] for group in groups])


def conflicting(source: Path, sst2: Path, folder: Path, rows: int, split: str) -> list[str]:
    """A file for each of three sets whose classes are 0 and 1; reviews have three times as many rows."""
    reviews = by_label(sst2 / ("train.jsonl" if split == "train" else "dev.jsonl"))
    sets = [[{"text": row["text"], "label": name} for name in "01" for row in reviews[name][: 3 * rows]]]
    by = by_label(source / f"{split}.jsonl")
    for pair in PAIRS:
        sets.append([{"text": row["text"], "label": str(i)} for i in (0, 1) for row in by[pair[i]][:rows]])
    return written(folder, f"conflicting-{split}", sets)


def written(folder: Path, name: str, sets: Sequence[Sequence[dict]]) -> list[str]:
    """The file of each set."""
    files = [folder / f"{name}{number}.jsonl" for number in range(1, len(sets) + 1)]
    for file, rows in zip(files, sets, strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [str(file) for file in files]


def answers(model: Any, processor: Any, examples: Any, task: str) -> list[float]:
    """The score of each test row."""
    return [line["score"] for line in evaluate(model, processor, examples, task=task, progress=False).predictions]


def ran(by: str, given: argparse.Namespace, folder: Path, weight: float | None, seed: int) -> dict[str, Any]:
    """One sequence, by one way."""
    begun, source, sst2 = time.monotonic(), given.data, given.sst2
    sizes = (("train", given.rows), ("test", TESTS))
    tasks, tests = (conflicting(source, sst2, folder, rows, split) if sst2 else grouped(source, folder, rows, split)
                    for split, rows in sizes)  # fmt: skip
    name = "conflicting" if sst2 else "groups"
    each = by == "each"
    keeps = by in ("replay", "agem")
    spec = TaskSequence(
        tuple(tasks),
        "naive" if each else by,
        tuple(tests),
        adapters="each" if each else "one",
        memory=given.memory if keeps else None,
    )
    settings = Training.from_dict({**SETTINGS.to_dict(), "seed": seed, "epochs": given.epochs})
    run = Run(
        MODEL, tasks[0], lt.LoRA(rank=8), training=settings,
        out=str(folder / f"{name}-{by}-{weight or 0:g}-{seed}-{given.rows}-{given.epochs}"),
    )  # fmt: skip
    run = spec.applied(run, {} if weight is None else {"weight": weight})
    done = carry_out(run, spec, answers=answers, resume=True, progress=False)
    found = {
        "tasks": name,
        "by": by,
        "seed": seed,
        "rows": given.rows,
        "epochs": given.epochs,
        "matrix": done.matrix.means().round(3).tolist(),
        "figures": done.figures,
    }
    weight = getattr(run.penalty, "weight", None)
    told = {"kept": done.kept, "weight": weight, "training seconds": sum(done.seconds.values())}
    return json.loads(json.dumps({**found, **told, "seconds": time.monotonic() - begun}).replace("NaN", "null"))


def cost(source: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Medians of ratios of CPU seconds: of a step by way over naive, of the Fisher information over a backward pass, of
    an outer step over the multi-task step."""
    from luthier import models
    from luthier.training.penalised import Penalised, project

    rows = data.load(grouped(source, folder, ROWS, "train")[0])
    loaded = models.load(MODEL, task="classification", labels=rows.labels)
    lt.attach(loaded.model, lt.LoRA(rank=8))
    collate = data.collator_for("classification", loaded.processor)
    features = data.encode_all(rows, loaded.processor, task="classification", max_length=64, labels=rows.labels)
    given = {key: t for key, t in collate(list(features[:16])).items() if key != "rows"}
    params = lt.trainable(loaded.model)
    at_work = {}
    for name in ("ewc", "si", "rwalk"):
        penalty = lt.find("penalties", name)()
        at_work[name] = Penalised(penalty, params)  # type: ignore[arg-type]
        at_work[name].kept = {"anchor": {k: p.detach().clone() for k, p in params.items()},
                              "importance": {k: torch.ones_like(p) for k, p in params.items()}}  # fmt: skip
    optimizer = torch.optim.AdamW(params.values(), lr=1e-4)

    def reference() -> dict[str, torch.Tensor]:
        loss = loaded.model(**given).loss  # of rows as long as the others, so that nothing but the way differs
        return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))

    class State:
        global_step = 10

    def step(name: str) -> None:
        loaded.model(**given).loss.backward()
        if name == "agem":
            project(lt.AGEM(), params, reference)
        if name in at_work:
            at_work[name].after_backward()
        optimizer.step()
        if name in at_work:
            at_work[name].on_optimizer_step(None, State, None)
        optimizer.zero_grad()

    def backward() -> None:
        loaded.model(**given).loss.backward()
        optimizer.zero_grad()

    names = {path: key for path, p in loaded.model.named_parameters() for key, q in params.items() if p is q}

    def loss(tensors: Mapping[str, torch.Tensor], rows: dict[str, Any]) -> torch.Tensor:
        own = {path: tensors[key] for path, key in names.items()}
        return torch.func.functional_call(loaded.model, own, kwargs=rows).loss

    def outer(steps: int) -> None:
        meta = lt.metas.FOMAML(inner_lr=1e-3 if steps else 0.0, inner_steps=max(1, steps))
        _, slopes = meta.outer(loss, params, given, given, torch.Generator())
        for key, p in params.items():
            p.grad = slopes[key]
        optimizer.step()
        optimizer.zero_grad()

    timed = {name: lambda name=name: step(name) for name in ("naive", "agem", *at_work)}
    timed |= {"backward": backward, "fisher": lambda: fisher_of(loaded.model, given)}
    timed |= {f"fomaml, {steps} inner steps": partial(outer, steps) for steps in (0, 1, 2)}
    under = {"fisher": "backward", **{name: "fomaml, 0 inner steps" for name in timed if name.startswith("fomaml")}}
    ratios: dict[str, list[float]] = {}
    for number in range(rounds + 2):
        seconds = {}
        for name, run in timed.items():
            begun = time.process_time()  # of this one thread, whatever else the machine does
            run()
            seconds[name] = time.process_time() - begun
        if number > 1:
            for name in timed:
                ratios.setdefault(name, []).append(seconds[name] / seconds[under.get(name, "naive")])
    return {name: round(statistics.median(found), 3) for name, found in ratios.items()}


def fisher_of(model: Any, batch: dict[str, Any]) -> None:
    """The batched pass alone, whose check of the first batch is paid once in a task."""
    from luthier.training import row_gradients

    true, row_gradients._agrees = row_gradients._agrees, lambda *_: True
    try:
        fisher_diagonal(model, [batch])
    finally:
        row_gradients._agrees = true


def known(file: Path) -> dict[str, Any]:
    """What was measured before."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": [], "cost": {}}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of CLINC150: train.jsonl, test.jsonl")
    parser.add_argument("--by", nargs="+", default=[*ways(), "each"])
    parser.add_argument("--weight", nargs="*", default=[], help="weights of penalties, as ewc=100")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a class to learn")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--memory", type=int, default=50, help="rows that replay and agem keep")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sst2", type=Path, help="the folder of SST-2: the three sets that conflict, not the groups")
    parser.add_argument("--folder", type=Path, help="where sequences lie, to be gone on with. Default: a temporary one")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    file = results_of("lifelong")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.cost:
            found = cost(given.data, folder, given.rounds)
            print(found)
            replace_json(file, {**known(file), "cost": found})
            return
        weights = {name: float(value) for name, _, value in (each.partition("=") for each in given.weight)}
        for seed, by in itertools.product(given.seeds, given.by):
            found = ran(by, given, folder, weights.get(by), seed)
            names = ("tasks", "by", "seed", "weight", "rows", "epochs")
            held = known(file)  # other starts may have added to it
            held["runs"] = [e for e in held["runs"] if any(e.get(name) != found[name] for name in names)] + [found]
            replace_json(file, held)
            figures = {name: round(value["value"], 3) for name, value in found["figures"].items()}
            print(by, seed, found["weight"], figures, found["kept"], f"{found['seconds']:.0f} s", flush=True)
