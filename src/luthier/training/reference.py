"""What an objective compares with: the log-probabilities of the reference, computed once before training.

The reference is the model before anything is attached to it, or with a finished adapter on it that is taken off
again; so no second copy of the model is ever held, whatever form is trained, full fine-tuning included. A run that
does not go through all of its rows leaves this to its steps: each computes the reference of its own rows, with the
adapters off.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from luthier import data
from luthier.core.adapters.attach import detach
from luthier.core.contracts.objective import ALSO, REFERENCE
from luthier.core.progress import counted
from luthier.core.sites.probe import eval_mode
from luthier.core.storage.folder import adapter_folder, read_adapter
from luthier.core.storage.store import load
from luthier.data.pictures import PICTURES
from luthier.measuring import cache
from luthier.methods.log_probs import log_probs
from luthier.models import Loaded
from luthier.training.folder import base_of, versions
from luthier.training.prepare import Prepared
from luthier.training.processes import processes
from luthier.training.report import steps_of
from luthier.training.spec import Run

Feature = dict[str, Any]
READ = ("input_ids", "attention_mask", "token_type_ids", "labels", PICTURES)
"""What the reference is called with."""
NAME = "reference"


def referred(run: Run, loaded: Loaded, prepared: Prepared, console: Console) -> Prepared:
    """Returns the rows with the log-probabilities of the reference, where the objective compares with one."""
    adapter = run.objective.reference_adapter()
    steps, per_epoch = steps_of(run, len(prepared.train), processes())
    if not run.objective.compares or (adapter is None and steps < per_epoch):
        return prepared
    parts = (prepared.train, prepared.evaluation)
    rows = [each for part in parts for feature in part for each in (feature, *feature.get(ALSO, ()))]
    key = key_of(run, loaded, rows, adapter)
    seen = any(PICTURES in row for row in rows)  # a picture's file may change under its name
    known = None if seen else cache.read(key)
    if known is None:
        with held(loaded.model, adapter), counted(console, "reference") as bar:
            task = bar.add_task("", total=len(rows))
            known = {NAME: {REFERENCE: computed(run, loaded, rows, lambda count: bar.advance(task, count))}}
        if not seen:
            cache.write(key, known)
    found = iter(known[NAME][REFERENCE].tolist())
    train, evaluation = ([marked(feature, found) for feature in part] for part in parts)
    return dataclasses.replace(prepared, train=train, evaluation=evaluation)


def marked(feature: Feature, found: Iterator[float]) -> Feature:
    """Returns a feature with its number, and those behind it with theirs."""
    own = feature | {REFERENCE: next(found)}
    return own | {ALSO: [each | {REFERENCE: next(found)} for each in feature[ALSO]]} if ALSO in feature else own


@contextmanager
def held(model: Any, adapter: str | None) -> Iterator[None]:
    """The model with a finished adapter on it, if there is one, while the context lasts."""
    if adapter is not None:
        load(model, adapter_folder(adapter), NAME)
    try:
        yield
    finally:
        if adapter is not None:
            detach(model, NAME)


def computed(run: Run, loaded: Loaded, rows: Sequence[Feature], done: Callable[[int], object]) -> torch.Tensor:
    """Returns log p of the answer of each row, [rows] in float64; rows of like length go together.

    Every process computes all of them, so that a base sharded over processes is gathered by all at once.
    """
    model, collator = loaded.model, data.collator_for(loaded.task, loaded.processor)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    found = torch.zeros(len(rows), dtype=torch.float64)
    size = 2 * run.training.batch
    with eval_mode(model):
        for start in range(0, len(order), size):
            places = order[start : start + size]
            batch = collator([{key: rows[i][key] for key in READ if key in rows[i]} for i in places])
            batch.pop("rows")
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            found[places] = log_probs(model, inputs)[0].double().cpu()
            done(len(places))
    return found


def key_of(run: Run, loaded: Loaded, rows: Sequence[Feature], adapter: str | None) -> str:
    """By what such numbers are kept: the base, the adapter, the tokens, and what changes their last bits."""
    tokens = hashlib.sha256(repr([(row["input_ids"], row["labels"]) for row in rows]).encode()).hexdigest()
    settings = run.training
    return cache.key_of(
        {
            "what": "log-probabilities of a reference",
            "base": base_of(loaded.model),
            "adapter": read_adapter(adapter)[1]["sha256"] if adapter is not None else None,
            "tokens": tokens,
            "precision": [settings.precision, settings.quantize, settings.batch],
            "versions": versions(),
        }
    )
