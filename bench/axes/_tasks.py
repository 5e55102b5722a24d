"""Tasks of SmolLM2-135M that several studies share: short texts, short answers, and how the answers are scored.

All tasks ask in one form, the text and nothing else, so that it alone tells them apart: the sentiment of a phrase
(SST-2), the intent of a request (CLINC150), the result of a word problem (MAWPS), and a word problem that is reasoned
out (LLM-Adapters' math_cot). FOLDER holds glue/sst2/{train,dev}.jsonl, clinc150/{train,test}.jsonl,
arithmetic/mawps/{train,test}.jsonl and arithmetic/math_cot_train.jsonl.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import luthier as lt
from luthier import data
from luthier.training import Run, Training, train

MODEL, DTYPE, LENGTH = "smollm2-135m", "bfloat16", 160
EXPERT, ROWS, STEPS, BATCH, RATE = lt.LoRA(rank=8, alpha=16.0), 400, 30, 6, 1e-3
"""How a task is fitted, where it is only a means."""
Row = dict[str, Any]


def sentiment(row: Row) -> tuple[str, str]:
    return row["text"].strip(), "positive" if row["label"] else "negative"


def intent(row: Row) -> tuple[str, str]:
    return row["text"], row["label"].replace("_", " ")


def sum_of(row: Row) -> tuple[str, str]:
    value = float(row["answer"] if "answer" in row else row["ans"])
    return row.get("original_text", row.get("instruction", "")), f"{value:g}"


def reasoned(row: Row) -> tuple[str, str]:
    """Without an answer, so that it is left out, where decimals do not end."""
    answer = row["output"].strip().removeprefix("A:").strip()
    return row["instruction"].strip(), answer if max(map(len, answer.split()), default=99) < 18 else ""


@dataclass(frozen=True)
class Task:
    """Where the rows of a task are, and how a row becomes (text, answer)."""

    train: str
    test: str
    """The file of `train` where there is none of its own: its last rows are then kept for testing."""
    read: Callable[[Row], tuple[str, str]]
    words: int
    """Longest text and answer together."""
    least: int = 0
    """Shortest text: SST-2 trains on fragments and tests on sentences."""


COT = "arithmetic/math_cot_train.jsonl"
TASKS = {
    "sentiment": Task("glue/sst2/train.jsonl", "glue/sst2/dev.jsonl", sentiment, 18, least=8),
    "intent": Task("clinc150/train.jsonl", "clinc150/test.jsonl", intent, 18),
    "problem": Task("arithmetic/mawps/train.jsonl", "arithmetic/mawps/test.jsonl", sum_of, 25),
    "reasoned": Task(COT, COT, reasoned, 50),
}


def pairs(folder: Path, name: str, part: str, count: int) -> list[tuple[str, str]]:
    """`count` (text, answer) of a part of a task, "train" or "test", the same every time."""
    task = TASKS[name]
    lines = (folder / getattr(task, part)).read_text(encoding="utf-8").splitlines()
    found = dict.fromkeys(task.read(json.loads(line)) for line in lines)
    short = [pair for pair in found if fits(task, *pair)]
    random.Random(0).shuffle(short)
    if task.test == task.train:
        short = short[:-100] if part == "train" else short[-100:]
    return short[:count]


def fits(task: Task, text: str, answer: str) -> bool:
    """Whether a row is short enough, and long enough."""
    return bool(answer) and len(f"{text} {answer}".split()) <= task.words and len(text.split()) >= task.least


def chat(text: str, answer: str) -> list[dict[str, str]]:
    turns = {"system": "Answer.", "user": text, "assistant": answer}
    return [{"role": role, "content": content} for role, content in turns.items()]


def drawn(folder: Path, name: str, part: str, count: int) -> list[Row]:
    """The same as rows that `luthier.train` reads."""
    return [{"messages": chat(*pair), "task": name} for pair in pairs(folder, name, part, count)]


def written(path: Path, rows: Sequence[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(steps: int, rate: float, seed: int, batch: int = BATCH) -> Training:
    return Training(
        steps=steps,
        batch=batch,
        lr=rate,
        seed=seed,
        eval_fraction=0,
        max_length=LENGTH,
        schedule="cosine",
        precision=DTYPE,
        save_every=steps,
    )


def fitted(folder: Path, work: Path, name: str) -> Path:
    """The run folder of the LoRA of a task, made where it is not there."""
    out = work / "tasks" / name
    if not (out / "adapter").is_dir():
        source = written(work / "tasks" / f"{name}.jsonl", drawn(folder, name, "train", ROWS))
        start = time.perf_counter()
        train(Run(MODEL, source, EXPERT, out=str(out), training=settings(STEPS, RATE, 0)), resume=True)
        print(f"{name}: fitted in {time.perf_counter() - start:.0f} s", flush=True)
    return out


@dataclass(frozen=True)
class Batch:
    """Rows as a model reads them, and which of its predictions are scored."""

    ids: Tensor
    mask: Tensor
    wanted: Tensor
    """[rows, columns - 1], the token behind each column."""
    told: Tensor
    """[rows, columns - 1], whether it belongs to the answer; the end of the turn does not."""


def batches(processor: Any, path: Path, rows: Sequence[Row], size: int = 16) -> list[Batch]:
    """Test rows, the shortest first."""
    encoded = data.encode_all(data.load(written(path, rows)), processor, max_length=3 * LENGTH)
    ordered, collate = sorted(encoded, key=lambda row: len(row["input_ids"])), data.collator_for("causal-lm", processor)
    found = []
    for start in range(0, len(ordered), size):
        batch = collate(ordered[start : start + size])
        wanted = batch["labels"][:, 1:]
        told = (wanted != -100) & (wanted != processor.eos_token_id)
        found.append(Batch(batch["input_ids"], batch["attention_mask"], wanted, told))
    return found


@dataclass
class Scores:
    """How answers are met, batch by batch."""

    loss: float = 0.0
    labels: int = 0
    exact: int = 0
    rows: int = 0

    def add(self, logits: Tensor, batch: Batch) -> None:
        """`logits` [rows, columns - 1, vocabulary] (or log-probabilities but for a constant in each row)."""
        likely = logits.float().log_softmax(-1).gather(-1, batch.wanted.clamp(min=0)[..., None])[..., 0]
        self.loss -= float(likely[batch.told].sum())
        self.labels += int(batch.told.sum())
        self.exact += int(((logits.argmax(-1) == batch.wanted) | ~batch.told).all(1).sum())
        self.rows += len(logits)

    def found(self) -> dict[str, float]:
        """Share of answers whose every token is the likeliest (what greedy decoding gives), mean loss of tokens."""
        return {"exact": self.exact / self.rows, "loss": self.loss / self.labels}


@torch.inference_mode()
def scored(model: Any, given: Sequence[Batch]) -> dict[str, float]:
    """Scores of one model."""
    scores = Scores()
    model.eval()
    for batch in given:
        scores.add(model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1], batch)
    return scores.found()
