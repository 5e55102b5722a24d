"""Uniform, GeLoRA's and EVA's ranks for LoRA under one budget: MiniLM on CoLA, RTE and SST-2, several seeds.

Every run sees the same rows in the same order for its seed and takes the same steps. For every task, each way has the
same learning rates to choose from (`RATES`): one short run at each, on rows that the draw of seed `TUNING` leaves to
training, is scored on rows it leaves out. The runs that count are scored on the development set, which nothing was
chosen on. EVA has the scale of its authors' settings (1/16), the others LoRA's usual 2. Results are kept run by run: an
interrupted study goes on, and processes can share it (--only).

    python -m bench ranks --data FOLDER [--seeds 3] [--only cola] [--out bench/results/ranks.json]

FOLDER holds glue/{cola,rte,sst2}/{train,dev}.jsonl with columns text[, text_pair], label.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from filelock import FileLock
from rich.console import Console
from rich.table import Table

import luthier as lt
from luthier import data
from luthier.core.contracts.init import Init
from luthier.core.contracts.ranks import Ranks
from luthier.evaluating import evaluate
from luthier.measuring import Calibration
from luthier.training import Run, Training, train

RANK, MODEL = 4, "minilm-l6"


@dataclass(frozen=True)
class Task:
    """A data set of the study."""

    metric: str
    rows: int
    """Training rows, drawn by the seed."""
    epochs: float
    held: int
    """Rows that a learning rate is chosen on."""


TASKS = {
    "cola": Task("mcc", 4000, 3, 1000),
    "rte": Task("accuracy", 1000, 2, 500),
    "sst2": Task("accuracy", 3000, 2, 1000),
}
RATES = (5e-4, 1.5e-3, 5e-3)
"""Learning rates that each way chooses from."""
TUNING, SHARE = 100, 0.5
"""Seed of the runs that choose, and their share of the epochs."""


@dataclass(frozen=True)
class Way:
    """How ranks and starts are chosen."""

    ranks: Ranks | None
    init: Init | None = None
    scale: float = 2.0
    """alpha / rank."""


WAYS = {
    "uniform": Way(lt.Uniform()),
    "gelora": Way(lt.GeLoRA()),
    "eva": Way(lt.ranks.EVA(), lt.inits.EVA(), scale=1 / 16),
}


def run(folder: Path, task: str, way: str, seed: int, rate: float, budget: int) -> dict[str, Any]:
    """One training run, scored: on held-out training rows for the seed that chooses, else on the development set."""
    settings, chosen, tuning = TASKS[task], WAYS[way], seed == TUNING
    source = str(folder / "glue" / task / "train.jsonl")
    drawn = data.load(source, limit=settings.rows + settings.held * tuning, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        path, held = Path(scratch) / "train.jsonl", Path(scratch) / "held.jsonl"
        write(path, drawn.rows[: settings.rows])
        write(held, drawn.rows[settings.rows :])
        start = time.monotonic()
        result = train(
            Run(
                MODEL,
                str(path),
                lt.LoRA(rank=RANK, alpha=chosen.scale * RANK),
                out=str(Path(scratch) / "run"),
                training=Training(
                    epochs=settings.epochs * (SHARE if tuning else 1),
                    batch=16,
                    lr=rate,
                    max_length=128,
                    truncate=True,
                    eval_fraction=0,
                    seed=seed,
                ),
                ranks=chosen.ranks,
                init=chosen.init,
                budget=str(budget),
                calibration=Calibration(seed=seed),
            ),
            progress=False,
        )
        seconds = time.monotonic() - start
        record = json.loads((result.folder / "run.json").read_text())["measured"]
        tested = data.load(str(held if tuning else folder / "glue" / task / "dev.jsonl"))
    found = evaluate(result.model, result.processor, tested, max_length=512, progress=False, keep_predictions=False)
    return {
        "task": task,
        "way": way,
        "seed": seed,
        "rate": rate,
        "metric": settings.metric,
        "score": found.metrics[settings.metric],
        "loss": found.loss,
        "spent": record["spent"],
        "ranks": list(record["ranks"].values()),
        "last_loss": sum(loss for _, loss in result.losses[-20:]) / 20,
        "seconds": round(seconds, 1),
    }


def write(path: Path, rows: Sequence[data.Example]) -> None:
    """Rows as a file of JSON lines."""
    path.write_text("".join(json.dumps(plain(row)) + "\n" for row in rows))


def plain(row: data.Example) -> dict[str, Any]:
    """A row as its file had it."""
    pair = {} if row.text_pair is None else {"text_pair": row.text_pair}
    return {"text": row.text, **pair, "label": row.label}


def budget() -> int:
    """Trainable parameters of LoRA at `RANK` everywhere."""
    from luthier.core.adapters.count import count
    from luthier.models import config_of, meta_model

    return count(meta_model(config_of(MODEL)), lt.LoRA(rank=RANK))["trainable"]


def todo(args: argparse.Namespace) -> Iterator[tuple[str, str, int, float]]:
    """The runs that are not in the file: first those that choose a rate, then seed by seed at the rate chosen."""
    tasks = args.only or list(TASKS)
    for task, way, rate in itertools.product(tasks, WAYS, RATES):
        if not any(r["rate"] == rate for r in runs_of(args.out, task, way, TUNING)):
            yield task, way, TUNING, rate
    for seed, task, way in itertools.product(range(args.seeds), tasks, WAYS):
        if not runs_of(args.out, task, way, seed):
            yield task, way, seed, best(args.out, task, way)


def runs_of(path: Path, task: str, way: str, seed: int) -> list[dict[str, Any]]:
    """The runs so far of one task, way and seed."""
    return [r for r in read(path) if (r["task"], r["way"], r["seed"]) == (task, way, seed)]


def best(path: Path, task: str, way: str) -> float:
    """The rate of the best score on the held rows; of equal ones, that of the lower loss."""
    return max(runs_of(path, task, way, TUNING), key=lambda r: (r["score"], -r["loss"]))["rate"]


def read(path: Path) -> list[dict[str, Any]]:
    """The runs so far."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


def add(path: Path, found: dict[str, Any]) -> None:
    """Adds a run; two processes may share the file."""
    with FileLock(f"{path}.lock"):
        runs = [*read(path), found]
        path.write_text(json.dumps({"model": MODEL, "torch": torch.__version__, "runs": runs}, indent=1) + "\n")


def table(runs: list[dict[str, Any]]) -> Table:
    """Mean and standard deviation over the seeds, and the paired difference to uniform."""
    shown = Table("task", "metric", "ranks", "numbers", "rate", "score", "± sd", "against uniform (95%)", "seeds")
    for task in TASKS:
        counted = [r for r in runs if r["task"] == task and r["seed"] != TUNING]
        base = {r["seed"]: r["score"] for r in counted if r["way"] == "uniform"}
        for way in WAYS:
            own = [r for r in counted if r["way"] == way]
            if own:
                scores = torch.tensor([r["score"] for r in own], dtype=torch.float64)
                gaps = torch.tensor([r["score"] - base[r["seed"]] for r in own if r["seed"] in base])
                sd = f"{scores.std():.3f}" if len(own) > 1 else "-"
                numbers = f"{own[0]['spent']:,}"
                cells = (task, own[0]["metric"], way, numbers, f"{own[0]['rate']:g}", f"{scores.mean():.3f}", sd)
                shown.add_row(*cells, gap(gaps), str(len(own)))
    return shown


def gap(gaps: torch.Tensor) -> str:
    """Mean paired difference with its t interval."""
    from scipy.stats import t

    if len(gaps) < 2 or not gaps.any():
        return "-"
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5)
    return f"{gaps.mean():+.3f} ± {half:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=results_of("ranks"))
    args = parser.parse_args(arguments)
    console, limit = Console(), budget()
    for task, way, seed, rate in todo(args):
        found = run(args.data, task, way, seed, rate, limit)
        add(args.out, found)
        console.print(
            f"{task} {way} seed {seed} rate {rate:g}: {found['score']:.3f} in {found['seconds']:.0f} s", highlight=False
        )
    console.print(table(read(args.out)))
