"""An unlearning, from its specification to its folder."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.func import functional_call

from luthier import data, models
from luthier.core.adapters.control import trainable
from luthier.core.contracts.example import Examples
from luthier.core.contracts.unlearning import Outputs
from luthier.core.errors import LuthierError
from luthier.core.files import claimed, read_json, replace_json
from luthier.core.owner import owned
from luthier.core.progress import counted
from luthier.core.sites.probe import eval_mode
from luthier.core.storage import format as format_
from luthier.core.storage import store
from luthier.core.storage.folder import adapter_folder
from luthier.data.labels import labels_in_order
from luthier.models import Loaded, licence_of
from luthier.training.adam_state import AdamState
from luthier.training.beginning import begin
from luthier.training.folder import read_run
from luthier.training.progress import quiet
from luthier.training.row_gradients import log_loss
from luthier.training.run import train
from luthier.training.spec import Run
from luthier.training.unlearning.klom import membership
from luthier.training.unlearning.many import check_classes, klom_figures
from luthier.training.unlearning.match import predicted
from luthier.training.unlearning.spec import Unlearn

SPEC, RESULT, STATE, ADAPTER = "unlearn.json", "unlearned.json", "state", "adapter"
RETRAINED, MODELS = "retrained", "models"
WRITTEN = (STATE, ADAPTER, RETRAINED, MODELS, RESULT)
Features = Sequence[dict[str, Any]]
CLASSIFIERS = ("classification", "image-classification", "audio-classification")


@dataclass(frozen=True)
class Rows:
    """The rows of an unlearning: read, and encoded as the run's were."""

    forget: Examples
    retain: Examples
    test: Examples | None
    encoded: Mapping[str, Features]
    """By name (forget, retain, test)."""
    collate: Any
    task: str
    labels: list[str] | None
    """The classes in the order that rows were encoded by."""


@dataclass(frozen=True)
class Unlearned:
    """What came of an unlearning."""

    folder: Path
    adapter: Path
    steps: int
    figures: dict[str, dict[str, float]]
    """By name, `before` and `after`: loss and accuracy on the rows to forget, the retained and the new ones, and the
    AUC of the membership test with its interval after. With `models` also KLOM above its null by set, with its interval
    over models."""
    model: Any
    processor: Any


def unlearn(spec: Unlearn, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> Unlearned:
    """Makes an adapter that is as if the rows to forget had never been learned, and measures how near it comes.

    The folder gets `unlearn.json`, `unlearned.json`, `state/` and `adapter/`. With `resume` a killed unlearning goes on
    with the same bits. Raises `LuthierError` before the weights are loaded for rows to forget that the adapter was not
    trained on, rows that are to be both forgotten and retained, and outputs that a method cannot match.
    """
    console, run = Console(stderr=True, quiet=not progress), trained_run(spec)
    rows = read_rows(spec, run)
    folder = claimed(spec.out, SPEC, "an unlearning", resume, overwrite)
    with quiet(), owned(folder):
        prints = {"forget": rows.forget.fingerprint, "retain": rows.retain.fingerprint}
        here = {"unlearn": spec.to_dict(), "data": prints}
        begin(folder, SPEC, here, "unlearning", overwrite, (folder / name for name in WRITTEN))
        loaded = _loaded(spec.adapter, run, rows)
        before = _measured(loaded, rows)
        if spec.unlearning.retrains:
            loaded = _retrained(spec, run, folder, resume, progress)
            steps = read_json(adapter_folder(str(folder / RETRAINED)) / "adapter.json")["measured"]["steps"]
        else:
            steps = _lowered(spec, loaded, rows, folder, console)
        after = _measured(loaded, rows)
        figures = _figures(rows, before, after, spec.seed)
        figures |= _over_models(spec, run, rows, folder / MODELS, console) if spec.models else {}
        return _finish(spec, run, loaded, rows, folder, int(steps), figures)


def _over_models(spec: Unlearn, run: Run, rows: Rows, folder: Path, console: Console) -> dict[str, dict[str, float]]:
    """KLOM over models of other seeds."""
    folder.mkdir(exist_ok=True)

    def losses(one: Run) -> dict[str, np.ndarray]:
        console.print(f"{Path(one.out).name}: trained", highlight=False)
        return {name: each for name, (each, _) in _measured(_loaded(one.out, one, rows), rows).items()}

    def lowered(own: Unlearn, one: Run) -> dict[str, np.ndarray]:
        loaded = _loaded(one.out, one, rows)
        _lowered(own, loaded, rows, Path(own.out), Console(quiet=True))
        console.print(f"{Path(own.out).name}: unlearned", highlight=False)
        return {name: each for name, (each, _) in _measured(loaded, rows).items()}

    return klom_figures(spec, run, folder, losses, lowered)


def trained_run(spec: Unlearn) -> Run:
    """Returns the run whose adapter is to forget."""
    folder = Path(spec.adapter).expanduser()
    if not (folder / "run.json").is_file():
        raise LuthierError(
            f"{spec.adapter} is not a run of luthier train (run.json is not there): what an adapter was trained on "
            "must be known, or nothing tells what it is to forget."
        )
    run = read_run(folder)
    return dataclasses.replace(run, model=spec.model) if spec.model else run


def read_rows(spec: Unlearn, run: Run) -> Rows:
    """Reads and encodes the rows; raises for those that contradict one another."""
    task = models.fitted_task(format_.read(adapter_folder(spec.adapter)))
    if task not in ("causal-lm", *CLASSIFIERS):
        raise LuthierError(
            f"{spec.adapter} was fitted for {task}; rows are forgotten by classifiers and causal language models."
        )
    settings: dict[str, Any] = {"task": task, "named": run.columns, "skip_bad_rows": run.skip_bad_rows}
    known = data.load(run.data, **settings)
    read = {name: data.load(getattr(spec, name), **settings) for name in ("forget", "retain", "test")
            if getattr(spec, name) is not None}  # fmt: skip
    check_rows(spec, run, read, known)
    check_classes(spec, known.labels, read["retain"].labels)
    if spec.unlearning.matches and known.labels is None:
        raise LuthierError(
            f"{spec.unlearning.name()} predicts every logit of a row, and a model for {task} has as many as its "
            "vocabulary for each token; it is for classifiers. Take ascent, kl or retrain."
        )
    processor = models.processor_of(run.model, task)
    encode = {"task": task, "max_length": run.training.max_length, "labels": known.labels}
    encoded = {name: data.encode_all(rows, processor, truncate=run.training.truncate, **encode)
               for name, rows in read.items()}  # fmt: skip
    collate = data.collator_for(task, processor)
    return Rows(read["forget"], read["retain"], read.get("test"), encoded, collate, task, known.labels)


def check_rows(spec: Unlearn, run: Run, read: Mapping[str, Examples], known: Examples) -> None:
    """Raises for rows to forget that were not learned, and for rows in two of the sets."""
    trained = {row.key() for row in known.rows}
    keys = {name: {row.key() for row in rows.rows} for name, rows in read.items()}
    strange = [row.row for row in read["forget"].rows if row.key() not in trained]
    if strange:
        raise LuthierError(
            f"{len(strange):,} of {len(read['forget']):,} rows of {spec.forget} are not in {run.data}, which "
            f"{spec.adapter} was trained on (row {strange[0]} first): they cannot be forgotten. Leave them out."
        )
    for name in ("retain", "test"):
        shared = len(keys["forget"] & keys.get(name, set()))
        if shared:
            raise LuthierError(
                f"{shared:,} rows are in {spec.forget} and in {getattr(spec, name)} too; a row is in one."
            )
    if keys.get("test", set()) & trained:
        raise LuthierError(
            f"{spec.test} holds rows of {run.data}, which were learned; a test needs rows that were not."
        )
    for name, rows in read.items():
        if known.labels is not None and set(rows.labels or []) - set(known.labels):
            raise LuthierError(
                f"{getattr(spec, name)} has classes that {run.data} has not; the adapter knows none of them."
            )


def _loaded(adapter: str, run: Run, rows: Rows) -> Loaded:
    """The base with the adapter of a run folder."""
    folder = adapter_folder(adapter)
    labels = format_.read(folder)["measured"].get("labels")
    loaded = models.load(run.model, task=rows.task, dtype=run.training.precision, labels=labels, attn=run.training.attn)
    store.load(loaded.model, folder, run.name)
    return loaded


def _lowered(spec: Unlearn, loaded: Loaded, rows: Rows, folder: Path, console: Console) -> int:
    """Lowers the method's loss, from where it stands, with gradients clipped to the norm 1; returns the steps."""
    method, adam = spec.unlearning, AdamState(trainable(loaded.model), spec.lr)
    own = {name: labels_in_order(rows.encoded[name], rows.labels, loaded.model.config)
           for name in ("forget", "retain")}  # fmt: skip
    fixed = _fixed(spec, loaded, rows, own, console)
    told = adam.load(folder / STATE) or {"steps": 0}
    with _shown(console, spec.steps) as tell:
        for number in range(told["steps"], spec.steps):
            drawn = {name: _drawn(len(own[name]), spec.batch, f"{spec.seed} {name} {number}") for name in own}
            loaded.model.eval()
            parts = [_outputs(loaded, rows, own[name], drawn[name], fixed.get(name)) for name in ("forget", "retain")]
            loss = method.loss(*parts)
            if not math.isfinite(loss.item()):
                raise LuthierError(f"the loss became {loss.item()} at step {number + 1}; lower lr ({spec.lr:g}).")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(adam.params.values()), 1.0)
            adam.step()
            tell(number + 1, loss.item())
            if (number + 1) % spec.save_every == 0 or number + 1 == spec.steps:
                adam.save(folder / STATE, {"steps": number + 1})
    return spec.steps


def _fixed(spec: Unlearn, loaded: Loaded, rows: Rows, own: Mapping[str, Features], console: Console) -> dict[str, Any]:
    """What is known of each row before the first step: logits to match, or those of the model before."""
    if spec.unlearning.matches:
        console.print("predicting the outputs without the rows to forget", highlight=False)
        return predicted(spec, loaded, rows.collate, own)
    if not spec.unlearning.remembers:
        return {}
    return {"retain": trained_copy(loaded)}


def trained_copy(loaded: Loaded) -> Callable[[Any], Tensor]:
    """Returns what gives the logits of the model as it is now, whatever is trained later."""
    ids = {id(p) for p in trainable(loaded.model).values()}
    start = {path: p.detach().clone() for path, p in loaded.model.named_parameters() if id(p) in ids}

    def logits(given: Any) -> Tensor:
        with torch.no_grad():
            return functional_call(loaded.model, start, kwargs=given).logits

    return logits


def _drawn(rows: int, count: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(rows), min(count, rows))


def _outputs(loaded: Loaded, rows: Rows, own: Features, places: Sequence[int], fixed: Any) -> Outputs:
    """What the model says to some rows, with what is known of them."""
    batch = rows.collate([own[place] for place in places])
    batch.pop("rows")
    device = loaded.model.device
    given = {key: t.to(device) for key, t in batch.items() if key != "labels"}
    labels = batch["labels"].to(device)
    logits, wanted = flat(loaded.model(**given).logits, labels)
    before = None if fixed is None or isinstance(fixed, Tensor) else flat(fixed(given), labels)[0]
    targets = fixed[list(places)].to(device, logits.dtype) if isinstance(fixed, Tensor) else None
    return Outputs(logits, wanted, before, targets)


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (logits [places, classes], labels [places]) at the places that have a label."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.dim() == 1:
        return logits, labels
    at = labels[:, 1:].ne(-100)
    return logits[:, :-1][at], labels[:, 1:][at]


def _measured(loaded: Loaded, rows: Rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The loss of every row and whether it is answered right, by set."""
    found = {}
    for name, features in rows.encoded.items():
        own = labels_in_order(features, rows.labels, loaded.model.config)
        losses, right = [], []
        with eval_mode(loaded.model):
            for start in range(0, len(own), 16):
                batch = rows.collate([own[i] for i in range(start, min(start + 16, len(own)))])
                batch.pop("rows")
                labels = batch.pop("labels").to(loaded.model.device)
                logits = loaded.model(**{key: t.to(loaded.model.device) for key, t in batch.items()}).logits
                for row, label in zip(logits, labels, strict=True):
                    losses.append(float(log_loss(row, label)))
                    said, wanted = flat(row[None], label[None])
                    right.append(bool(said.argmax(-1).eq(wanted).all()))
        found[name] = np.asarray(losses), np.asarray(right, dtype=float)
    return found


def _figures(rows: Rows, before: Any, after: Any, seed: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in after:
        for place, what in enumerate(("loss", "accuracy")):
            told = {"before": float(before[name][place].mean()), "after": float(after[name][place].mean())}
            found[f"{name} {what}"] = told | {"count": len(after[name][place])}
    if "test" in after:
        tested = {when: membership(each["forget"][0], each["test"][0], seed)
                  for when, each in (("before", before), ("after", after))}  # fmt: skip
        span = {"low": tested["after"]["low"], "high": tested["after"]["high"]}
        found["membership AUC"] = {"before": tested["before"]["auc"], "after": tested["after"]["auc"], **span}
    return found


def _retrained(spec: Unlearn, run: Run, folder: Path, resume: bool, progress: bool) -> Loaded:
    """The oracle: the run again, on the retained rows."""
    again = dataclasses.replace(run, data=spec.retain, out=str(folder / RETRAINED))
    done = train(again, resume=resume and (folder / RETRAINED / "run.json").is_file(), progress=progress)
    return Loaded(done.model, done.processor, run.model, "", "", [])


@contextmanager
def _shown(console: Console, steps: int) -> Iterator[Callable[[int, float], Any]]:
    """Progress: a bar on a terminal, a line every ten steps elsewhere."""
    if not console.is_terminal:

        def line(step: int, loss: float) -> None:
            if step % 10 == 0 or step == steps:
                console.print(f"step {step}/{steps}  loss {loss:.4f}", highlight=False)

        yield line
        return
    with counted(console, "unlearning") as shown:
        task = shown.add_task("", total=steps)
        yield lambda step, loss: shown.update(task, completed=step, description=f"loss {loss:.4f}")


def _finish(
    spec: Unlearn, run: Run, loaded: Loaded, rows: Rows, folder: Path, steps: int, figures: dict[str, Any]
) -> Unlearned:
    labels = format_.read(adapter_folder(spec.adapter))["measured"].get("labels")
    told = {"steps": steps, "task": rows.task, "labels": labels, "unlearned": figures}
    store.save(
        loaded.model,
        folder / ADAPTER,
        run.name,
        base=run.model,
        measured=told,
        license=run.license,
        base_license=licence_of(run.model),
    )
    replace_json(folder / RESULT, {"by": spec.unlearning.name(), "steps": steps, "figures": figures})
    return Unlearned(folder, folder / ADAPTER, steps, figures, loaded.model, loaded.processor)
