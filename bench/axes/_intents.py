"""The ground that most studies stand on: a classifier of 150 intents that has seen little, and three tasks of 50.

CLINC150's intents are dealt into three groups. The base is MiniLM, fitted in full to `SHOTS` rows of every intent; a
task is the rest of the rows of one group. So a fit can be scored on its own task and on what the base knew before (the
other groups), and no run brings a head of its own: all share the base's.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import luthier as lt
from luthier import data, models
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.update import Update
from luthier.measuring.allocation import allocate
from luthier.measuring.calibration import Calibration

MODEL, GROUPS, LENGTH, BATCH = "minilm-l6", 3, 48, 32
SHOTS, TESTED = 6, 10
"""Rows of an intent that the base is fitted on, and that are tested."""
STEPS, RATE = 200, 1.5e-3
"""Of the base's own fit."""
Feature = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """One fit of the base to a task."""

    form: Form
    where: str | None = None
    init: Init | None = None
    update: Update = field(default_factory=lt.AdamW)
    rate: float = 1e-3
    steps: int = 60
    seed: int = 0
    warmup: float = 0.06
    source: Sequence[Feature] | None = None
    """Rows that the start is measured on (none: those that are trained on)."""
    samples: int = 256


@dataclass(frozen=True)
class Trained:
    """What a fit tells beside the model."""

    losses: list[float]
    """Loss of each step's batch before the step. In the first pass over the rows, which most runs do not outlast, it
    is of rows never seen before."""
    count: int
    """Trainable parameters."""
    moved: float
    """Share of them that train in the last step and are not what they were at the start."""


class Intents:
    """Rows by group, and the base in memory."""

    def __init__(self, folder: Path, work: Path) -> None:
        """`folder` holds clinc150/{train,test}.jsonl; the base is kept in `work`."""
        self.folder, self.work = folder / "clinc150", work / "intents"
        self.names = sorted({row["label"] for row in self.rows("train")})
        order = random.Random(0).sample(self.names, len(self.names))
        self.groups = [sorted(order[i::GROUPS]) for i in range(GROUPS)]

    def rows(self, part: str) -> list[dict[str, str]]:
        """The rows of a part of the data."""
        return [json.loads(line) for line in (self.folder / f"{part}.jsonl").read_text().splitlines()]

    @cached_property
    def base(self) -> Any:
        """The base as `luthier.model` loads it, in bfloat16; made when it is asked for the first time."""
        if not (self.work / "config.json").exists():
            self._make()
        return models.load(str(self.work), task="classification", dtype="bfloat16")

    def _make(self) -> None:
        from luthier.core.files import committed
        from luthier.interop.formats._merged import save_merged

        torch.manual_seed(0)
        loaded = models.load(MODEL, task="classification", labels=self.names, dtype="bfloat16")
        shots = self._encoded(loaded.processor, "train", self.names, slice(SHOTS))
        train(loaded, shots, Fit(lt.Full(), rate=RATE, steps=STEPS))
        self.work.parent.mkdir(parents=True, exist_ok=True)
        with committed(self.work) as temporary:
            save_merged(loaded.model, loaded.processor, temporary)

    def _encoded(self, processor: Any, part: str, names: Sequence[str], kept: slice) -> list[Feature]:
        by_label = defaultdict(list)
        for row in self.rows(part):
            by_label[row["label"]].append(row)
        return self._read(processor, [row for name in names for row in by_label[name][kept]])

    def encoded(self, rows: Sequence[dict[str, str]]) -> list[Feature]:
        """Rows as the base reads them."""
        return self._read(self.base.processor, rows)

    def _read(self, processor: Any, rows: Sequence[dict[str, str]]) -> list[Feature]:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            examples = data.load(str(path))
        return data.encode_all(
            examples, processor, task="classification", max_length=LENGTH, labels=self.names, truncate=True
        )

    def training(self, group: int) -> list[Feature]:
        """The rows of a task."""
        return self._encoded(self.base.processor, "train", self.groups[group], slice(SHOTS, None))

    @cached_property
    def tests(self) -> list[list[Feature]]:
        """Test rows of each group."""
        return [self._encoded(self.base.processor, "test", names, slice(TESTED)) for names in self.groups]

    def scores(self, model: Any = None) -> list[tuple[float, float]]:
        """(accuracy, loss) on each group, of the base with what is attached to it, or of another model."""
        return [score(model or self.base.model, self.base.processor, rows) for rows in self.tests]


def train(loaded: Any, features: Sequence[Feature], fit: Fit) -> Trained:
    """Attaches the form and fits it; it stays attached."""
    model, collator = loaded.model, data.collator_for("classification", loaded.processor)
    torch.manual_seed(fit.seed)
    calibration = Calibration(samples=fit.samples, batch=BATCH, seed=fit.seed, fresh=True)
    shown = list(fit.source if fit.source is not None else features)
    found = allocate(
        model, fit.form, fit.where, init=fit.init, features=shown, collator=collator, calibration=calibration
    )
    lt.attach(model, found.form, fit.where, stats=found.stats, init=fit.init)
    held = {key: p.detach().clone() for key, p in lt.trainable(model).items()}
    optimizer = lt.optimiser(model, fit.update, lr=fit.rate, steps=fit.steps, seed=fit.seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses, phases = [], (0, *fit.update.restarts(fit.steps), fit.steps)
    model.train()
    for step, rows in zip(range(fit.steps), batches(features, fit.seed), strict=False):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step, phases, fit.warmup)
        loss = model(**inputs(collator(rows))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in lt.trainable(model).values() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
    model.eval()
    count = sum(p.numel() for p in held.values())
    moved = sum(int((p != held[key]).sum()) for key, p in lt.trainable(model).items())
    return Trained(losses, count, moved / count)


def batches(features: Sequence[Feature], seed: int) -> Iterator[list[Feature]]:
    """Batches without end, in an order drawn anew for each pass."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(range(len(features)), len(features))
        yield from ([features[i] for i in order[at : at + BATCH]] for at in range(0, len(order) - BATCH + 1, BATCH))


def factor(step: int, phases: Sequence[int], warmup: float) -> float:
    """The rate's share at a step: in each phase linear warm-up, then linear decay, as transformers' schedule."""
    start = max(begin for begin in phases[:-1] if begin <= step)
    end = min(stop for stop in phases if stop > step)
    rising = -(-warmup * (end - start) // 1)
    done = step - start
    return done / rising if done < rising else (end - step) / max(1, end - start - rising)


def inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the model takes of a batch."""
    return {key: value for key, value in batch.items() if key != "rows"}


@torch.inference_mode()
def score(model: Any, processor: Any, features: Sequence[Feature]) -> tuple[float, float]:
    """(accuracy, mean loss)."""
    collator = data.collator_for("classification", processor)
    rows = sorted(features, key=lambda row: len(row["input_ids"]))
    hits, loss = 0, 0.0
    for at in range(0, len(rows), 128):
        batch = inputs(collator(rows[at : at + 128]))
        logits = model(**batch).logits.float()
        hits += int((logits.argmax(-1) == batch["labels"]).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"))
    return hits / len(rows), loss / len(rows)
