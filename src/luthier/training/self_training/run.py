"""A self-training, from its specification to its folder."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import set_seed

from luthier import models
from luthier.core.adapters.attach import attach
from luthier.core.adapters.control import trainable
from luthier.core.checks import WHOLE, many, mapping
from luthier.core.checks import number as a_number
from luthier.core.files import claimed
from luthier.core.numerics.resampling import mean_interval
from luthier.core.owner import owned
from luthier.core.records import replace_json, replace_text
from luthier.core.storage import store
from luthier.models import Loaded, licence_of
from luthier.training.adam_state import AdamState
from luthier.training.beginning import begin
from luthier.training.progress import quiet
from luthier.training.self_training.rows import Rows, padded, read_rows
from luthier.training.self_training.spec import SelfTraining
from luthier.training.self_training.weights import Tensors, differentiable, row_weights
from luthier.training.steps import Steps, Told, trained
from luthier.training.unread import name_unread

SPEC, RESULT, ADAPTER, NAME = "selftrain.json", "selftrained.json", "adapter", "default"
TEACHER = "few-shot"
SCORED = 32
"""Rows of a batch that is not learned."""
KEPT = {"weight": mapping(many(a_number, 2, 2), WHOLE)}
"""What a state holds besides its steps: the sum and the count of each row's weights."""


@dataclass(frozen=True)
class SelfTrained:
    """What came of a self-training."""

    folder: Path
    adapter: Path
    figures: dict[str, dict[str, float]]
    """By stage (few-shot, round 1, …): `accuracy` on the test rows with `low` and `high` of its 95% interval over
    these; empty without test rows."""
    weights: dict[str, dict[str, float]]
    """By round: the share of unlabelled rows that ever had a weight, and the mean weight over one of equal ones."""
    model: Any
    processor: Any


def self_train(
    spec: SelfTraining, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> SelfTrained:
    """Trains a teacher on the labelled rows, then students on what it says of the unlabelled ones, round by round.

    A class is the model's next token after a prompt. A student starts from the base with a new adapter, learns the
    teacher's probabilities (KL divergence), each row of a batch weighed by how far a step on it would lower the loss of
    labelled rows (`row_weights`), is trained on the labelled rows for some steps more, and is the next teacher. The
    folder gets `selftrain.json`, `selftrained.json`, `round-N.jsonl` (what the teacher said of each row, and its mean
    weight), a state for each stage, and `adapter/`. With `resume` a killed run goes on with the same bits. Raises
    `LuthierError` for rows that do not serve before the weights are loaded.
    """
    console = Console(stderr=True, quiet=not progress)
    processor = models.processor_of(spec.model, "causal-lm")
    rows = read_rows(spec, processor)
    name_unread(console, processor, (rows.labelled, rows.unlabelled, rows.test))
    folder = claimed(spec.out, SPEC, "a self-training", resume, overwrite)
    with quiet(), owned(folder):
        prints = [each.fingerprint for each in (rows.labelled, rows.unlabelled, rows.test) if each is not None]
        leftovers = [*folder.glob("state-*"), *folder.glob("round-*.jsonl"), folder / ADAPTER, folder / RESULT]
        begin(folder, SPEC, {"selftrain": spec.to_dict(), "data": prints}, "self-training", overwrite, leftovers)
        loaded = models.load(spec.model, task="causal-lm", dtype=spec.dtype)
        set_seed(spec.seed)
        attach(loaded.model, spec.form, spec.where, NAME)
        work = Work(spec, rows, loaded, folder, console)
        with differentiable(loaded.model):
            figures, weights = work.all_rounds()
        store.save(
            loaded.model,
            folder / ADAPTER,
            NAME,
            base=spec.model,
            measured={"steps": spec.steps, "task": "causal-lm", "selftrain": figures, "template": spec.template},
            base_license=licence_of(spec.model),
        )
        replace_json(folder / RESULT, {"figures": figures, "weights": weights, "classes": rows.labels})
        return SelfTrained(folder, folder / ADAPTER, figures, weights, loaded.model, loaded.processor)


class Work:
    """The stages, each from where it stands."""

    def __init__(self, spec: SelfTraining, rows: Rows, loaded: Loaded, folder: Path, console: Console) -> None:
        self.spec, self.rows, self.model, self.folder, self.console = spec, rows, loaded.model, folder, console
        self.start = {key: p.detach().clone() for key, p in trainable(loaded.model).items()}
        paths = {id(p): path for path, p in loaded.model.named_parameters()}
        self.paths = {key: paths[id(p)] for key, p in trainable(loaded.model).items()}
        self.pad = loaded.processor.pad_token_id or 0
        self.said = torch.tensor(rows.said, device=loaded.model.device)
        self.truth = {name: torch.tensor(each, device=loaded.model.device) for name, each in rows.truth.items()}

    def all_rounds(self) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """Returns the figures of each stage, and the weights of each round."""
        figures: dict[str, dict[str, float]] = {}
        weights: dict[str, dict[str, float]] = {}
        self.trained(TEACHER, self.spec.teacher_steps, lambda adam, _, step: self.taught(adam, f"teacher {step}"))
        self.measured(TEACHER, figures)
        for number in range(1, self.spec.rounds + 1):
            name, soft = f"round {number}", self.chances("unlabelled")
            told = self.trained(name, self.spec.steps + self.spec.finetune, self.student(number, soft))
            self.measured(name, figures)
            weights[name] = self.weighed(number, soft, told)
        return figures, weights

    def student(self, number: int, soft: Tensor) -> Callable[[AdamState, Told, int], float]:
        """Returns one step of the student of a round."""
        spec, key = self.spec, f"round {number}"

        def step(adam: AdamState, told: Told, place: int) -> float:
            if place >= spec.steps:
                return self.taught(adam, f"{key} {place}")
            chosen = self.drawn("unlabelled", spec.batch, f"{key} {place}")
            shown = self.drawn("labelled", spec.shown, f"{key} shown {place}")
            params = trainable(self.model)

            def losses(at: Tensors) -> Tensor:
                return divergences(self.logits(at, "unlabelled", chosen), soft[chosen])

            weights = torch.full((len(chosen),), 1 / len(chosen), device=soft.device)
            if spec.reweigh and place >= spec.warmup * spec.steps:
                weights = row_weights(losses, lambda at: self.loss(at, shown), params)
            for row, weight in zip(chosen, weights.tolist(), strict=True):
                total, count = told["weight"].get(str(row), (0.0, 0))
                told["weight"][str(row)] = [total + weight * len(chosen), count + 1]
            value = (losses(params) * weights).sum()
            return stepped(adam, value)

        return step

    def taught(self, adam: AdamState, key: str) -> float:
        """A step on labelled rows."""
        return stepped(adam, self.loss(trainable(self.model), self.drawn("labelled", self.spec.shown, key)))

    def trained(self, name: str, steps: int, step: Callable[[AdamState, Told, int], float]) -> Told:
        """A stage: a new adapter, trained for so many steps; one that is done is read."""
        with torch.no_grad():
            for key, p in trainable(self.model).items():
                p.copy_(self.start[key])
        adam, state = AdamState(trainable(self.model), self.spec.lr), self.folder / f"state-{name.replace(' ', '-')}"
        made = Steps(steps, self.spec.save_every, f"lr ({self.spec.lr:g})")
        told: Told = {"weight": {}}
        return trained(adam, state, made, self.console, name, partial(step, adam, told), told, KEPT)

    def logits(self, params: Tensors, name: str, places: Sequence[int]) -> Tensor:
        """What the model says for each class, [rows, classes], at an adapter's tensors."""
        given, last = padded([self.rows.ids[name][i] for i in places], self.pad, self.model.device)
        own = {self.paths[key]: p for key, p in params.items()}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:  # only ends of prompts are asked for
            given["logits_to_keep"], last = last.unique(return_inverse=True)
        logits = functional_call(self.model, own, kwargs=given).logits
        logits = logits[torch.arange(len(places), device=logits.device), last][:, self.said]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, params: Tensors, places: Sequence[int]) -> Tensor:
        """The mean loss of labelled rows."""
        return functional.cross_entropy(self.logits(params, "labelled", places), self.truth["labelled"][places])

    @torch.no_grad()
    def chances(self, name: str) -> Tensor:
        """The probability of each class, [rows, classes], as the model is."""
        count, params = len(self.rows.ids[name]), trainable(self.model)
        parts = [range(at, min(at + SCORED, count)) for at in range(0, count, SCORED)]
        return torch.cat([self.logits(params, name, part).softmax(-1) for part in parts])

    def drawn(self, name: str, count: int, key: str) -> list[int]:
        """The rows of a step."""
        rows = len(self.rows.ids[name])
        return random.Random(f"{self.spec.seed} {name} {key}").sample(range(rows), min(count, rows))

    def measured(self, name: str, figures: dict[str, dict[str, float]]) -> None:
        """Accuracy on the test rows."""
        if self.rows.test is None:
            return
        right = self.chances("test").argmax(-1).eq(self.truth["test"]).double().cpu().numpy()
        low, high = mean_interval(right, self.spec.seed, share=True)
        figures[name] = {"accuracy": float(right.mean()), "low": low, "high": high, "rows": len(right)}
        self.console.print(f"{name}: accuracy {right.mean():.3f}", highlight=False)

    def weighed(self, number: int, soft: Tensor, told: Mapping[str, Any]) -> dict[str, float]:
        """Writes what the teacher said of each row with its mean weight, where 1 is that of equal weights."""
        lines, found = [], []
        for place, (row, chances) in enumerate(zip(self.rows.unlabelled.rows, soft.tolist(), strict=True)):
            total, count = told["weight"].get(str(place), (0.0, 0))
            weight = total / count if count else None
            found += [] if weight is None else [weight]
            said = dict(zip(self.rows.labels, chances, strict=True))
            lines.append(json.dumps({"row": row.row, "label": max(said, key=lambda each: said[each]),
                                     "chances": said, "weight": weight}, ensure_ascii=False))  # fmt: skip
        replace_text(self.folder / f"round-{number}.jsonl", "\n".join(lines) + "\n")
        values = np.asarray(found)
        return {"rows": len(values), "with weight": float((values > 0).mean()), "mean": float(values.mean())}


def divergences(logits: Tensor, chances: Tensor) -> Tensor:
    """KL(chances || softmax(logits)) of each row, [rows]."""
    return functional.kl_div(logits.log_softmax(-1), chances, reduction="none").sum(-1)


def stepped(adam: AdamState, value: Tensor) -> float:
    """Makes a step down a loss, and returns it."""
    value.backward()
    for p in adam.params.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    adam.step()
    return float(value.detach())
