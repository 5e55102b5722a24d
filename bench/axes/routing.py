"""MeteoRA's gates over three finished adapters of SmolLM2-135M: whose expert they choose, and what that is worth.

Three tasks ask in one form, the text and nothing else, so that it alone tells them apart: the sentiment of a phrase
(SST-2), the intent of a request (CLINC150), the result of a word problem (MAWPS, of up to 25 words). Each gets a LoRA;
then, for each seed, gates over the three are fitted to rows of all of them, experts frozen, as the paper has it
and with the β = 50 of the authors' code. On test rows, base, own adapter, the three averaged alike and the routed
adapter are scored by the share of answers whose every token is the likeliest (what greedy decoding would give) and by
the mean loss of their tokens. Nothing was tuned. What is finished is kept: an interrupted study goes on.

    python -m bench.axes.routing --data FOLDER [--seeds 3] [--out bench/results/axes-routing.json]

FOLDER holds glue/sst2/{train,dev}.jsonl, clinc150/{train,test}.jsonl and arithmetic/mawps/{train,test}.jsonl.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench.axes._study import Ledger, arguments, markdown, mean
from torch.nn.functional import cross_entropy

import luthier as lt
from luthier import data, models
from luthier.core.adapt import find_state
from luthier.core.router import watched
from luthier.training import Run, Training, train

MODEL, TRAINED, TESTED = "smollm2-135m", 600, 60
STEPS, GATE_STEPS, BATCH, RATE, GATE_RATE = 45, 40, 6, 1e-3, 5e-4
EXPERT, BETA, WORDS = lt.LoRA(rank=8, alpha=16.0), 50.0, 25
Row = dict[str, Any]


def sentiment(row: Row) -> tuple[str, str]:
    return row["text"].strip(), "positive" if row["label"] else "negative"


def intent(row: Row) -> tuple[str, str]:
    return row["text"], row["label"].replace("_", " ")


def sum_of(row: Row) -> tuple[str, str]:
    value = float(row["answer"] if "answer" in row else row["ans"])
    return row.get("original_text", row.get("instruction", "")), f"{value:g}"


@dataclass(frozen=True)
class Task:
    """Where the rows of a task are, and how a row becomes (text, answer)."""

    train: str
    test: str
    read: Callable[[Row], tuple[str, str]]


TASKS = {
    "sentiment": Task("glue/sst2/train.jsonl", "glue/sst2/dev.jsonl", sentiment),
    "intent": Task("clinc150/train.jsonl", "clinc150/test.jsonl", intent),
    "problem": Task("arithmetic/mawps/train.jsonl", "arithmetic/mawps/test.jsonl", sum_of),
}


def drawn(folder: Path, name: str, file: str, count: int) -> list[Row]:
    """`count` rows of a file of a task, the same every time."""
    lines = (folder / file).read_text(encoding="utf-8").splitlines()
    pairs = [TASKS[name].read(json.loads(line)) for line in lines]
    short = [pair for pair in pairs if len(pair[0].split()) <= WORDS]
    chosen = random.Random(0).sample(short, min(count, len(short)))
    return [{"messages": chat(*pair), "task": name} for pair in chosen]


def chat(text: str, answer: str) -> list[dict[str, str]]:
    turns = {"system": "Answer.", "user": text, "assistant": answer}
    return [{"role": role, "content": content} for role, content in turns.items()]


def written(path: Path, rows: list[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(steps: int, rate: float, seed: int) -> Training:
    return Training(steps=steps, batch=BATCH, lr=rate, seed=seed, eval_fraction=0, max_length=96, schedule="cosine")


def experts(given: Any) -> tuple[str, ...]:
    """The finished adapters, made when they are not there."""
    found = []
    for name, task in TASKS.items():
        folder = given.work / "routing" / name
        if not (folder / "adapter").is_dir():
            source = written(given.work / "routing" / f"{name}.jsonl", drawn(given.data, name, task.train, TRAINED))
            start = time.perf_counter()
            train(Run(MODEL, source, EXPERT, out=str(folder), training=settings(STEPS, RATE, 0)), resume=True)
            print(f"{name}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
        found.append(f"{name}={folder}")
    return tuple(found)


def gates(given: Any, names: tuple[str, ...], seed: int) -> Path:
    """The run folder of gates, fitted to a third of the rows of each task."""
    folder = given.work / "routing" / f"gates{seed}"
    if not (folder / "adapter").is_dir():
        rows = [row for name, task in TASKS.items() for row in drawn(given.data, name, task.train, TRAINED // 3)]
        form = lt.MeteoRA(experts=names, rank=EXPERT.rank, train="router")
        source = written(given.work / "routing" / "mix.jsonl", rows)
        objective, training = lt.Routing(beta=BETA), settings(GATE_STEPS, GATE_RATE, seed)
        run = Run(MODEL, source, form, out=str(folder), objective=objective, training=training)
        start = time.perf_counter()
        train(run, resume=True)
        print(f"gates of seed {seed}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return folder


@torch.no_grad()
def scored(loaded: Any, given: Any, name: str) -> dict[str, Any]:
    """Exact answers, their loss, and (of a routed adapter) the share of decisions for the own expert, on test rows."""
    path = written(given.work / "routing" / f"{name}-test.jsonl", drawn(given.data, name, TASKS[name].test, TESTED))
    rows = data.encode_all(data.load(path), loaded.processor, max_length=96)
    collate, own = data.collator_for("causal-lm", loaded.processor), list(TASKS).index(name)
    exact, losses, tokens, answers = [], [], [], []
    loaded.model.eval()
    for start in range(0, len(rows), 16):
        batch = collate(rows[start : start + 16])
        with watched(loaded.model) if find_state(loaded.model) else nullcontext([]) as routes:
            logits = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        wanted, predicted = batch["labels"][:, 1:], logits[:, :-1]
        told = (wanted != -100) & (wanted != loaded.processor.eos_token_id)
        losses.append(cross_entropy(predicted[told], wanted[told], reduction="none"))
        exact.append(((predicted.argmax(-1) == wanted) | ~told).all(1))
        real, before = batch["attention_mask"].bool(), torch.nn.functional.pad(told, (0, 1))
        for route in routes:
            right = route.logits.argmax(-1) == own
            tokens.append(right[real].double().mean())
            answers.append(right[before].double().mean())
    found = {"exact": float(torch.cat(exact).double().mean()), "loss": float(torch.cat(losses).mean())}
    chosen = {"tokens": tokens, "answers": answers} if tokens else {}
    return found | {key: float(torch.stack(values).mean()) for key, values in chosen.items()}


def measure(given: Any, way: str, seed: int, prepare: Callable[[Any, str], None]) -> None:
    """Scores one way on each task, if that has not been done."""
    ledger: Ledger = given.ledger
    left = [name for name in TASKS if not ledger.runs(way=way, task=name, seed=seed)]
    for name in left:
        loaded = models.load(MODEL)
        prepare(loaded.model, name)
        ledger.add({"way": way, "task": name, "seed": seed, "rows": TESTED} | scored(loaded, given, name))


def saved(folders: dict[str, Path]) -> Callable[[Any, str], None]:
    """The adapter of a run folder for each task."""

    def load(model: Any, name: str) -> None:
        lt.load(model, folders[name] / "adapter")

    return load


def alike(names: tuple[str, ...]) -> Callable[[Any, str], None]:
    """All experts at the same weight for every token: the mean of the three changes."""

    def attach(model: Any, _: str) -> None:
        lt.attach(model, lt.MeteoRA(experts=names, rank=EXPERT.rank, top=len(names)))
        for key, tensor in lt.trainable(model).items():
            if key.endswith("gate"):
                tensor.data.zero_()

    return attach


def table(ledger: Ledger) -> str:
    """One row a task: exact answers and loss of each way, and how often the routed adapter chose the own expert."""

    def cell(way: str, name: str) -> str:
        runs = ledger.runs(way=way, task=name)
        return f"{mean([100 * run['exact'] for run in runs], 1)} ({mean([run['loss'] for run in runs], 2)})"

    ways = ("base", "own", "alike", "routed")
    rows = []
    for name in TASKS:
        routed = ledger.runs(way="routed", task=name)
        shares = [mean([100 * run[key] for run in routed], 1) for key in ("tokens", "answers")]
        rows.append([name, *(cell(way, name) for way in ways), *shares])
    head = ("task", "base", "own adapter", "three alike", "routed", "own expert, tokens %", "at answers %")
    return markdown(head, rows)


def main() -> None:
    given = arguments(__doc__, "routing")
    if not given.table:
        measure(given, "base", 0, lambda model, name: None)
        names = experts(given)
        measure(given, "own", 0, saved({name: given.work / "routing" / name for name in TASKS}))
        measure(given, "alike", 0, alike(names))
        for seed in range(given.seeds):
            measure(given, "routed", seed, saved({name: gates(given, names, seed) for name in TASKS}))
    print(table(given.ledger))


if __name__ == "__main__":
    main()
