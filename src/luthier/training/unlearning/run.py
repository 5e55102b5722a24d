"""An unlearning, from its specification to its folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.func import functional_call

from luthier.core.adapters.control import trainable
from luthier.core.contracts.unlearning import Outputs
from luthier.core.files import claimed
from luthier.core.owner import owned
from luthier.core.records import recorded, replace_json
from luthier.core.storage import format as format_
from luthier.core.storage import store
from luthier.core.storage.folder import adapter_folder
from luthier.data.labels import labels_in_order
from luthier.models import Loaded, licence_of
from luthier.training.adam_state import AdamState
from luthier.training.base import load_base
from luthier.training.beginning import begin
from luthier.training.progress import quiet
from luthier.training.run import train
from luthier.training.spec import Run
from luthier.training.steps import Steps, trained
from luthier.training.unlearning.figures import figures_of, flat, row_losses
from luthier.training.unlearning.many import klom_figures, on_all
from luthier.training.unlearning.match import predicted
from luthier.training.unlearning.rows import Features, Rows, read_rows, trained_run
from luthier.training.unlearning.spec import Unlearn
from luthier.training.unread import name_unread

SPEC, RESULT, STATE, ADAPTER = "unlearn.json", "unlearned.json", "state", "adapter"
RETRAINED, MODELS = "retrained", "models"
FAR = 20.0
"""The move of a logit by which a class goes from sure to impossible: of more it is told."""
WRITTEN = (STATE, ADAPTER, RETRAINED, MODELS, RESULT)


@dataclass(frozen=True)
class Unlearned:
    """What came of an unlearning."""

    folder: Path
    adapter: Path
    steps: int
    figures: dict[str, dict[str, float]]
    """By name, `before`, `after` and its 95% interval `low` to `high`: loss and accuracy on the rows to forget, the
    retained and the new ones, and the AUC of the membership test. With `models` also KLOM above its null by set, with
    its interval over models."""
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
    name_unread(console, rows.processor, (rows.forget, rows.retain, rows.test))
    folder = claimed(spec.out, SPEC, "an unlearning", resume, overwrite)
    with quiet(), owned(folder):
        prints = {"forget": rows.forget.fingerprint, "retain": rows.retain.fingerprint}
        here = {"unlearn": spec.to_dict(), "data": prints}
        begin(folder, SPEC, here, "unlearning", overwrite, (folder / name for name in WRITTEN))
        loaded = _loaded(spec.adapter, run, rows)
        before = row_losses(loaded, rows)
        if spec.unlearning.retrains:
            loaded = _retrained(spec, run, folder, resume, progress)
            with recorded(adapter_folder(str(folder / RETRAINED)) / "adapter.json") as told:
                steps = int(told["measured"]["steps"])
        else:
            steps = _lowered(spec, loaded, rows, folder, console)
        after = row_losses(loaded, rows)
        figures = figures_of(rows, before, after, spec.seed)
        figures |= _over_models(spec, run, rows, folder / MODELS, console) if spec.models else {}
        return _finish(spec, run, loaded, rows, folder, int(steps), figures)


def _over_models(spec: Unlearn, run: Run, rows: Rows, folder: Path, console: Console) -> dict[str, dict[str, float]]:
    """KLOM over models of other seeds."""
    folder.mkdir(exist_ok=True)

    def losses(one: Run) -> dict[str, np.ndarray]:
        console.print(f"{Path(one.out).name}: trained", highlight=False)
        return {name: each for name, (each, _) in row_losses(_loaded(one.out, one, rows), rows).items()}

    def lowered(own: Unlearn, one: Run) -> dict[str, np.ndarray]:
        loaded = _loaded(one.out, one, rows)
        _lowered(own, loaded, rows, Path(own.out), Console(quiet=True))
        console.print(f"{Path(own.out).name}: unlearned", highlight=False)
        return {name: each for name, (each, _) in row_losses(loaded, rows).items()}

    return klom_figures(spec, run, folder, losses, lowered)


def _loaded(adapter: str, run: Run, rows: Rows) -> Loaded:
    """The base with the adapter of a run folder."""
    folder = adapter_folder(adapter)
    labels = format_.read(folder)["measured"].get("labels")
    if run.training.precision == "float16":  # nothing here scales a loss
        run = replace(run, training=replace(run.training, precision="float32"))
    loaded = load_base(run, rows.task, labels)
    store.load(loaded.model, folder, run.name)
    return loaded


def _lowered(spec: Unlearn, loaded: Loaded, rows: Rows, folder: Path, console: Console) -> int:
    """Lowers the method's loss, from where it stands, with gradients clipped to the norm 1; returns the steps."""
    method, adam = spec.unlearning, AdamState(trainable(loaded.model), spec.lr)
    own = {name: labels_in_order(rows.encoded[name], rows.labels, loaded.model.config)
           for name in ("forget", "retain")}  # fmt: skip
    fixed = _fixed(spec, loaded, rows, own, console)
    loaded.model.eval()

    def step(number: int) -> float:
        drawn = {name: _drawn(len(own[name]), spec.batch, f"{spec.seed} {name} {number}") for name in own}
        parts = [_outputs(loaded, rows, own[name], drawn[name], fixed.get(name)) for name in ("forget", "retain")]
        loss = method.loss(*parts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(adam.params.values()), 1.0)
        adam.step()
        return loss.item()

    steps = Steps(spec.steps, spec.save_every, f"lr ({spec.lr:g})")
    return trained(adam, folder / STATE, steps, console, "unlearning", step)["steps"]


def _fixed(spec: Unlearn, loaded: Loaded, rows: Rows, own: Mapping[str, Features], console: Console) -> dict[str, Any]:
    """What is known of each row before the first step: logits to match, or those of the model before."""
    if spec.unlearning.matches:
        console.print("predicting the outputs without the rows to forget", highlight=False)
        targets, most = predicted(spec, loaded, rows.collate, own)
        if most > FAR:
            console.print(
                f"note: a logit would move by {most:,.0f}, further than a linear prediction holds; raise damping.",
                highlight=False,
            )
        return targets
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


def _retrained(spec: Unlearn, run: Run, folder: Path, resume: bool, progress: bool) -> Loaded:
    """The oracle: the run again, on all of the retained rows, where this command is to compute it."""
    again = on_all(run, spec.retain, folder / RETRAINED)
    done = train(again, resume=resume and (folder / RETRAINED / "run.json").is_file(), progress=progress)
    return Loaded(done.model, done.processor, run.model, "", "", [])


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
