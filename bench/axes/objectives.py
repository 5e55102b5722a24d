"""Objectives beside plain fine-tuning (SFT), on SmolLM2-135M: tasks of unequal size, holes in the answers, shots.

Three comparisons, each of LoRA fits that differ in their objective alone, with SFT first:

- balance: MFT's five balances on a mix of three tasks of `_tasks.py` that differ in rows and in the length of answers;
  each task is scored on test rows of its own.
- masked: masked thought on few reasoned word problems, seen several times, scored on unseen ones of the same kind, and
  by the answers of GSM8K, whose words are other people's.
- shots: ManyICL on intents, in as many tokens a step as SFT, scored on intents that no row was of, with no and with
  three answered rows before the question.

    python -m bench axes-objectives --data FOLDER

FOLDER is that of `_tasks.py`, with gsm8k/test.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.axes import _tasks as tasks
from bench.axes._study import by_seed, difference, markdown, mean, parsed

import luthier as lt
from luthier.core.contracts.objective import Objective
from luthier.training import Run, train

FORM, WHERE, RATE = lt.LoRA(rank=8, alpha=16.0), "all-linear & layers(15, 29)", 1e-3
"""The upper half of the blocks, as the backward pass then ends there."""
SFT = "sft"
TESTED = 30
MIX = {"sentiment": 120, "intent": 60, "reasoned": 20}
"""Rows of each task in the unequal mix."""
FEW, KNOWN = 48, 120
"""Reasoned rows of the masked study; intents that the shots study is fitted to (the others are tested)."""
GSM_WORDS = 60


@dataclass(frozen=True)
class Study:
    """Objectives that are compared, and on what."""

    ways: dict[str, Objective]
    steps: int
    batches: dict[str, int]
    """Rows of a step by way, where they differ from `batch`."""
    batch: int
    rows: Callable[[Path], list[tasks.Row]]
    tests: Callable[[Path], dict[str, list[tasks.Row]]]
    held: Callable[[Path], list[tasks.Row]] | None = None
    """Rows that the objective itself looks at (CoBa)."""


def mix(folder: Path) -> list[tasks.Row]:
    return [row for name, count in MIX.items() for row in tasks.drawn(folder, name, "train", count)]


def held(folder: Path) -> list[tasks.Row]:
    """As many rows of each task, behind those of the mix."""
    return [row for name, count in MIX.items() for row in tasks.drawn(folder, name, "train", count + 8)[count:]]


def each_task(folder: Path) -> dict[str, list[tasks.Row]]:
    return {name: tasks.drawn(folder, name, "test", TESTED) for name in MIX}


def problems(folder: Path) -> dict[str, list[tasks.Row]]:
    """Unseen reasoned rows, and short ones of GSM8K."""
    lines = (folder / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    short = [row for row in found if len(f"{row['question']} {row['answer']}".split()) <= GSM_WORDS]
    chosen = random.Random(0).sample(short, TESTED)
    gsm = [{"messages": tasks.chat(row["question"], row["answer"])} for row in chosen]
    return {"reasoned": tasks.drawn(folder, "reasoned", "test", TESTED), "gsm8k": gsm}


def split(folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, intent) of the intents that are fitted and of those that are tested."""
    every = tasks.pairs(folder, "intent", "train", 10**9)
    names = sorted({answer for _, answer in every})
    known = set(random.Random(0).sample(names, KNOWN))
    return [pair for pair in every if pair[1] in known], [pair for pair in every if pair[1] not in known]


def intents(folder: Path) -> list[tasks.Row]:
    return [{"messages": tasks.chat(*pair), "task": "intent"} for pair in split(folder)[0][:600]]


def shots(folder: Path) -> dict[str, list[tasks.Row]]:
    """Rows of new intents, alone and behind three answered ones, of which one is of the same intent."""
    _, pairs = split(folder)
    draw, alone, behind = random.Random(1), [], []
    for text, answer in pairs[:TESTED]:
        same = draw.choice([p for p in pairs[TESTED:] if p[1] == answer])
        others = draw.sample([p for p in pairs[TESTED:] if p[1] != answer], 2)
        before = draw.sample([same, *others], 3)
        system, *turns = tasks.chat(text, answer)
        shown = [turn for pair in before for turn in tasks.chat(*pair)[1:]]
        alone.append({"messages": [system, *turns]})
        behind.append({"messages": [system, *shown, *turns]})
    return {"0 shots": alone, "3 shots": behind}


STUDIES = {
    "masked": Study(
        {SFT: lt.SFT(), "masked_thought": lt.MaskedThought(p=0.4)},
        steps=36,
        batches={},
        batch=4,
        rows=lambda folder: tasks.drawn(folder, "reasoned", "train", FEW),
        tests=problems,
    ),
    "balance": Study(
        {
            SFT: lt.SFT(),
            "sample": lt.MFT(balance="sample"),
            "task_token": lt.MFT(balance="task_token"),
            "task_sample": lt.MFT(balance="task_sample"),
            "coba": lt.MFT(balance="coba", warmup=6, history=20, interval=2),
        },
        steps=24,
        batches={},
        batch=6,
        rows=mix,
        tests=each_task,
        held=held,
    ),
    "shots": Study(
        {SFT: lt.SFT(), "many_icl": lt.ManyICL(shots=4)},
        steps=30,
        batches={"many_icl": 2},
        batch=8,
        rows=intents,
        tests=shots,
    ),
}


def run(args: argparse.Namespace, study: str, way: str, seed: int) -> dict[str, Any]:
    """One fit and its scores; the adapter is not kept."""
    what, work = STUDIES[study], args.work / "objectives"
    out = work / f"{study}-{way}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    source = tasks.written(work / f"{study}.jsonl", what.rows(args.data))
    looked = tasks.written(work / f"{study}-held.jsonl", what.held(args.data)) if what.held else None
    training = tasks.settings(what.steps, RATE, seed, what.batches.get(way, what.batch))
    training = dataclasses.replace(training, eval_every=what.steps)
    start = time.perf_counter()
    made = train(
        Run(
            tasks.MODEL,
            source,
            FORM,
            WHERE,
            out=str(out),
            objective=what.ways[way],
            training=training,
            eval_data=looked if way == "coba" else None,
        ),
        progress=False,
    )
    kept: dict[str, Any] = {"study": study, "way": way, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    kept |= {"first": made.losses[0][1], "last": sum(loss for _, loss in made.losses[-5:]) / 5}
    for name, rows in what.tests(args.data).items():
        scores = tasks.scored(made.model, last_answers(tasks.batches(made.processor, work / "test.jsonl", rows)))
        kept |= {f"{name} {key}": value for key, value in scores.items()}
    shutil.rmtree(out)
    return kept


def last_answers(given: Sequence[tasks.Batch]) -> Sequence[tasks.Batch]:
    """Only the last answer of each row is scored."""
    for batch in given:
        gaps = (~batch.told).cumsum(1).masked_fill(~batch.told, -1)  # the same within an answer, more in a later one
        batch.told.logical_and_(gaps == gaps.amax(1, keepdim=True))
    return given


def table(args: argparse.Namespace, study: str) -> str:
    """One row an objective: loss of each test, and the share of exact answers."""
    plain, rows = args.ledger.runs(study=study, way=SFT), []
    names = [key.removesuffix(" loss") for key in (plain[0] if plain else {}) if key.endswith(" loss")]
    for way in STUDIES[study].ways:
        own = args.ledger.runs(study=study, way=way)
        if not own:
            continue
        cells = [way]
        for name in names:
            key = f"{name} loss"
            cells.append(mean([r[key] for r in own]))
            cells.append("-" if way == SFT else difference(by_seed(own, key), by_seed(plain, key)))
            cells.append(mean([100 * r[f"{name} exact"] for r in own], 1))
        means = [{r["seed"]: sum(r[f"{n} loss"] for n in names) / len(names) for r in each} for each in (own, plain)]
        cells += [mean(list(means[0].values())), "-" if way == SFT else difference(*means)]
        rows.append(cells)
    head = [f"{name}{what}" for name in names for what in (", loss", " against sft", ", exact %")]
    return markdown(["objective", *head, "mean loss", "against sft"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    args = parsed(arguments, __doc__, "objectives", seeds=2)
    if not args.table:
        for study in STUDIES:
            for seed in range(args.seeds):
                for way in STUDIES[study].ways:
                    if not args.ledger.runs(study=study, way=way, seed=seed):
                        args.ledger.add(run(args, study, way, seed))
    for study in STUDIES:
        print(f"{study}\n\n{table(args, study)}")
