"""FLoRA against averaged factors and central training: MiniLM on SST-2, 8 clients, several seeds.

The rows of a seed are the same for every way, and so is their deal to 8 clients, at random. In each round a client goes
over its rows twice; central training goes over all rows as often as all rounds do, and so takes 8 times the steps of a
client. Of mixed ranks the clients have 4, 8 and 16 in turn, else 8; alpha / rank is 2. All have one learning rate, that
bench/ranks.py found best for LoRA on this task at rank 4; no way is tuned for itself. Scores are on rows of the
development set, which nothing was chosen on. Results are kept run by run: an interrupted bench goes on.

    python -m bench axes-federated --data FOLDER

FOLDER holds glue/sst2/{train,dev}.jsonl with columns text, label.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.axes._study import markdown, parsed

import luthier as lt
from luthier import data
from luthier.evaluating import evaluate
from luthier.training import Run, Training, train

MODEL, RANK, CLIENTS, ROUNDS = "minilm-l6", 8, 8, 3
ROWS, SCORED, RATE, EPOCHS = 512, 400, 1.5e-3, 2
"""Rows trained on, rows of the development set that are scored, the learning rate, a client's passes in a round."""
MIXED = "4,8,16"


@dataclass(frozen=True)
class Way:
    """How clients' changes come together; None: there are no clients."""

    aggregation: str | None
    ranks: str | None = None


WAYS = {
    "central": Way(None),
    "flora": Way("flora"),
    "fedit": Way("fedit"),
    "flora, mixed ranks": Way("flora", MIXED),
    "zero padding, mixed ranks": Way("zero_padding", MIXED),
}


def run(folder: Path, way: str, seed: int) -> dict[str, Any]:
    """One run, scored after every round."""
    drawn = data.load(str(folder / "train.jsonl"), limit=ROWS, seed=seed).rows
    dev = data.load(str(folder / "dev.jsonl"), limit=SCORED, seed=0).rows
    training = Training(epochs=EPOCHS, batch=8, lr=RATE, max_length=32, truncate=True, seed=seed)
    form, chosen, started = lt.LoRA(rank=RANK, alpha=2.0 * RANK), WAYS[way], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        rows, scored = write(Path(scratch) / "rows.jsonl", drawn), write(Path(scratch) / "scored.jsonl", dev)
        if chosen.aggregation is None:
            rounds = central(rows, scored, Path(scratch), form, training)
        else:
            rounds = lt.federate(
                MODEL,
                rows,
                aggregation=chosen.aggregation,
                form=form,
                clients=CLIENTS,
                rounds=ROUNDS,
                ranks=chosen.ranks,
                out=str(Path(scratch) / "run"),
                training=training,
                eval_data=scored,
                progress=False,
            ).rounds
    kept = ("round", "train_loss", "eval_loss", "accuracy", "rank", "sent_up", "sent_down")
    return {
        "way": way,
        "seed": seed,
        "rounds": [{key: line[key] for key in kept if key in line} for line in rounds],
        "seconds": round(time.monotonic() - started, 1),
    }


def central(rows: str, scored: str, scratch: Path, form: lt.Form, training: Training) -> list[dict[str, Any]]:
    """Training on all rows at once, as one last round."""
    settings = Training(**{**training.to_dict(), "epochs": float(ROUNDS * EPOCHS), "eval_fraction": 0.0})
    done = train(Run(MODEL, rows, form, out=str(scratch / "run"), training=settings), progress=False)
    tested = data.load(scored)
    found = evaluate(
        done.model, done.processor, tested, max_length=512, batch=8, progress=False, keep_predictions=False
    )
    return [{"round": ROUNDS, "eval_loss": found.loss, "accuracy": found.metrics["accuracy"], "rank": RANK}]


def write(path: Path, rows: Sequence[data.Example]) -> str:
    """Rows as a file of JSON lines."""
    path.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))
    return str(path)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean accuracy by round, its standard deviation over the seeds at the end, and the numbers sent in a whole run."""
    rounds, rows = range(1, ROUNDS + 1), []
    for way in WAYS:
        if own := [r for r in runs if r["way"] == way]:
            last = torch.tensor([r["rounds"][-1]["accuracy"] for r in own], dtype=torch.float64)
            sd = f"{last.std():.3f}" if len(own) > 1 else ""
            rank = str(max(r["rounds"][-1]["rank"] for r in own))
            means = [mean(own, "accuracy", number) for number in rounds]
            sent = [sum_of(own, key) for key in ("sent_up", "sent_down")]
            rows.append([way, *means, sd, mean(own, "eval_loss", ROUNDS), rank, *sent, str(len(own))])
    head = ["way", *(f"round {number}" for number in rounds), "± sd", "loss", "rank", "sent up", "sent down", "seeds"]
    return markdown(head, rows)


def mean(runs: Sequence[dict[str, Any]], key: str, number: int) -> str:
    """Of a figure of a round, over the runs that have it."""
    found = [line[key] for r in runs for line in r["rounds"] if line["round"] == number]
    return f"{sum(found) / len(found):.3f}" if found else ""


def sum_of(runs: Sequence[dict[str, Any]], key: str) -> str:
    """Of a figure over the rounds, mean over the runs, in millions."""
    found = [line[key] for r in runs for line in r["rounds"] if key in line]
    return f"{sum(found) / len(runs) / 1e6:.1f} M" if found else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and prints the table."""
    args = parsed(arguments, __doc__, "federated")
    if not args.table:
        for seed, way in itertools.product(range(args.seeds), WAYS):
            if not args.ledger.runs(way=way, seed=seed):
                args.ledger.add(run(args.data / "glue" / "sst2", way, seed))
    print(table(args.ledger.runs()))
