"""Uniform, GeLoRA's and EVA's ranks for LoRA under one budget: MiniLM on CoLA, RTE and SST-2, several seeds.

Every run sees the same rows in the same order for its seed, the same steps and LoRA's default learning rate, and is
scored on the development set, which nothing was chosen on. EVA has the scale of its authors' settings (1/16), the
others LoRA's usual 2. Results are kept run by run: an interrupted study goes on, and processes can share it (--only).

    python bench/ranks.py --data FOLDER [--seeds 3] [--only cola] [--out bench/results/ranks.json]

FOLDER holds glue/{cola,rte,sst2}/{train,dev}.jsonl with columns text[, text_pair], label.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.table import Table

import luthier as lt
from luthier import data
from luthier.core.allocation import Ranks
from luthier.core.initialiser import Init
from luthier.measuring import Calibration
from luthier.training import Run, Training, evaluate, train

RANK, MODEL = 4, "minilm-l6"


@dataclass(frozen=True)
class Task:
    """A data set of the study."""

    metric: str
    rows: int
    """Training rows, drawn by the seed."""
    epochs: float


TASKS = {"cola": Task("mcc", 3000, 4), "rte": Task("accuracy", 1000, 3), "sst2": Task("accuracy", 2000, 2)}


@dataclass(frozen=True)
class Way:
    """How ranks and starts are chosen."""

    ranks: Ranks | None
    init: Init | None = None
    budgeted: bool = True
    scale: float = 2.0
    """alpha / rank."""


WAYS = {
    "uniform": Way(lt.Uniform()),
    "gelora": Way(lt.GeLoRA()),
    "eva": Way(lt.ranks.EVA(), lt.inits.EVA(), scale=1 / 16),
    "gelora, its own ranks": Way(lt.GeLoRA(), budgeted=False),
}


def run(folder: Path, task: str, way: str, seed: int, budget: int) -> dict[str, Any]:
    """One training run, scored."""
    settings, chosen = TASKS[task], WAYS[way]
    rows = data.load(str(folder / "glue" / task / "train.jsonl"), limit=settings.rows, seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "train.jsonl"
        path.write_text("".join(json.dumps(plain(row)) + "\n" for row in rows.rows))
        start = time.monotonic()
        result = train(
            Run(
                MODEL,
                str(path),
                lt.LoRA(rank=RANK, alpha=chosen.scale * RANK),
                out=str(Path(scratch) / "run"),
                training=Training(
                    epochs=settings.epochs,
                    batch=16,
                    lr=5e-4,
                    max_length=128,
                    truncate=True,
                    eval_fraction=0,
                    seed=seed,
                ),
                ranks=chosen.ranks,
                init=chosen.init,
                budget=str(budget) if chosen.budgeted else None,
                calibration=Calibration(seed=seed),
            ),
            progress=False,
        )
        seconds = time.monotonic() - start
        record = json.loads((result.folder / "run.json").read_text())["measured"]
    held = data.load(str(folder / "glue" / task / "dev.jsonl"))
    found = evaluate(result.model, result.processor, held, max_length=512, progress=False, keep_predictions=False)
    return {
        "task": task,
        "way": way,
        "seed": seed,
        "metric": settings.metric,
        "score": found.metrics[settings.metric],
        "loss": found.loss,
        "spent": record["spent"],
        "ranks": record["ranks"],
        "last_loss": sum(loss for _, loss in result.losses[-20:]) / 20,
        "seconds": seconds,
    }


def plain(row: data.Example) -> dict[str, Any]:
    """A row as its file had it."""
    pair = {} if row.text_pair is None else {"text_pair": row.text_pair}
    return {"text": row.text, **pair, "label": row.label}


def budget() -> int:
    """Trained numbers of LoRA at `RANK` everywhere."""
    from luthier.cli.base import config_of, meta_model
    from luthier.cli.count import count

    return count(meta_model(config_of(MODEL)), lt.LoRA(rank=RANK))["trainable"]


def todo(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """The runs of the study that are not in the file, those within the budget first."""
    done = {(r["task"], r["way"], r["seed"]) for r in read(args.out)}
    for budgeted in (True, False):
        for seed, task in itertools.product(range(args.seeds), args.only or TASKS):
            ways = [way for way, chosen in WAYS.items() if chosen.budgeted is budgeted]
            yield from ((task, way, seed) for way in ways if (task, way, seed) not in done)


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
    shown = Table("task", "metric", "ranks", "numbers", "score", "± sd", "against uniform (95%)", "seeds")
    for task in TASKS:
        base = {r["seed"]: r["score"] for r in runs if (r["task"], r["way"]) == (task, "uniform")}
        for way in WAYS:
            own = [r for r in runs if (r["task"], r["way"]) == (task, way)]
            if own:
                scores = torch.tensor([r["score"] for r in own], dtype=torch.float64)
                gaps = torch.tensor([r["score"] - base[r["seed"]] for r in own if r["seed"] in base])
                sd = f"{scores.std():.3f}" if len(own) > 1 else "-"
                numbers = f"{own[0]['spent']:,}"
                cells = (task, own[0]["metric"], way, numbers, f"{scores.mean():.3f}", sd, gap(gaps), str(len(own)))
                shown.add_row(*cells)
    return shown


def gap(gaps: torch.Tensor) -> str:
    """Mean paired difference with its t interval."""
    from scipy.stats import t

    if len(gaps) < 2 or not gaps.any():
        return "-"
    half = float(t.ppf(0.975, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5)
    return f"{gaps.mean():+.3f} ± {half:.3f}"


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/ranks.json"))
    args = parser.parse_args()
    console, limit = Console(), budget()
    for task, way, seed in todo(args):
        found = run(args.data, task, way, seed, limit)
        add(args.out, found)
        console.print(f"{task} {way} seed {seed}: {found['score']:.3f} in {found['seconds']:.0f} s", highlight=False)
    console.print(table(read(args.out)))


if __name__ == "__main__":
    main()
