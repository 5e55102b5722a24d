"""Training: from the specification of a run to its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.signature import takes
from luthier.data.objects import source_of
from luthier.methods.choices import by_name, made, written
from luthier.methods.recipe import form_named, read_recipe
from luthier.training.from_adapter import extending, resolved, run_file_of
from luthier.training.objective import chosen_by_rows, completed
from luthier.training.result import Result
from luthier.training.runfile import is_run_file, read_run_file
from luthier.training.spec import Run, Training

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame
    from transformers import PreTrainedModel, TrainerCallback

    from luthier.core.contracts.form import Form
    from luthier.models import Loaded

ROWS = ("data", "eval_data", "target")
"""Fields that may be rows instead of a source."""


@takes(Run, Training)
def train(
    run: Run | str | Path | Loaded | PreTrainedModel | None = None,
    data: str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset | None = None,
    *,
    model: str | Path | Loaded | PreTrainedModel | None = None,
    form: Form | str | None = None,
    method: Form | str | None = None,
    recipe: str | None = None,
    eval_data: str | Path | Sequence[Mapping[str, Any]] | DataFrame | Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    **fields: Any,
) -> Result:
    """Trains a run and fills its folder: a `Run`, a run file, or a model, data and a method with further fields.

        lt.train("smollm2-135m", "train.jsonl", method="lora", lr=1e-3, out="run")
        lt.train(lt.model("smollm2-135m"), rows, form=lt.LoRA(rank=16), update="lora_plus", epochs=2)
        lt.train("run.toml", out="second")

    A model is named, or held in memory (what `lt.model` gives, a model of transformers): that one is adapted where it
    lies. Data are a source, dictionaries in a list, a DataFrame or a Dataset; rows from memory are kept in
    `$LUTHIER_CACHE/rows`, so that the run can be resumed. `method` is another word for `form`; a name, here and of
    other choices, stands for the component with its own settings. `recipe` stands under what is said here. The other
    fields are those of `Run` and of `Training`; the latter go before those of `training`. `callbacks` are told of
    every step as by transformers' Trainer. `from_adapter` is a finished adapter to go on from, ours or another
    library's, which brings its form; of a run it brings model, data and settings too: `lt.train(from_adapter="run",
    steps=500, out="longer")`.

    The folder gets `run.json`, `adapter/`, `metrics.jsonl`, `loss.png`, `README.md` and `checkpoints/`. With
    `resume`, an interrupted run resumes from its newest complete checkpoint with the very losses that it would have
    had; a folder without a run starts one. `overwrite` replaces a run. Without `progress` nothing is printed. Without
    an objective, the rows choose it: pairs of a chosen and a rejected answer are fitted by `dpo`, all others by
    `sft`, which refuses answers that a label calls bad.

    Raises `LuthierError` for bad rows, a selector that matches nothing, a folder in use and the like before the
    weights are loaded, and for a loss that is not finite, naming the step and the rows.
    """
    from luthier import models
    from luthier.training.base import loaded_of, precision_of
    from luthier.training.session import Session

    told = {"data": data, "eval_data": eval_data, "form": _one(form=form, method=method), **fields}
    given = {key: value for key, value in told.items() if value is not None}
    if isinstance(run, Run):
        if given or model is not None or recipe is not None:
            raise LuthierError("give a Run or its fields, not both.")
        return Session(run, progress, callbacks=callbacks).train(resume, overwrite)
    file = run if isinstance(run, str | Path) and is_run_file(str(run)) else None
    named = model if file is not None else _one(run=run, model=model)
    trust, source = bool(given.get("trust_remote_code")), given.get("from_adapter")
    extends = source and file is None and named is None
    under = _extended(str(source), trust) if extends else _under(file, recipe, trust)
    with models.trusting(trust):
        base = None if named is None or isinstance(named, str | Path) else loaded_of(named)
    if base is not None:
        given["precision"] = precision_of(base, given.get("precision"))
    given |= {} if named is None else {"model": base.name if base else str(named)}
    stated = _stated(under, given, recipe is not None)
    described = completed(stated)
    notes = chosen_by_rows(stated, described)
    return Session(described, progress, notes, callbacks, base).train(resume, overwrite)


def _one(**given: Any) -> Any:
    """The one of two words for a thing that was used; None if neither was."""
    (first, a), (second, b) = given.items()
    if a is not None and b is not None:
        raise LuthierError(f"{first} and {second} are two words for one thing; give one of them.")
    return b if a is None else a


def _extended(source: str, trust: bool) -> dict[str, Any]:
    """The fields of the finished run that an adapter is of, whose form the adapter brings."""
    found = read_run_file(run_file_of(source))
    found.check_trust(trust)
    told = extending(found.stated())
    return {name: value for name, value in told.items() if name not in ("form", "where")}


def _stated(under: dict[str, Any], given: dict[str, Any], recipe: bool = False) -> dict[str, Any]:
    """The fields of a run, those given over others; `recipe`: one named the form."""
    fields = by_name({key: source_of(value) if key in ROWS else value for key, value in given.items()})
    settings = {f.name for f in dataclasses.fields(Training)}
    trained = {key: fields.pop(key) for key in settings & set(fields)}
    training = fields.get("training", under.get("training", Training()))
    if "epochs" in trained and "steps" not in trained and "training" not in fields:
        training = dataclasses.replace(training, steps=None)  # those of a recipe or file give way
    merged = {**under, **fields, "training": dataclasses.replace(training, **trained)}
    merged = resolved(merged, recipe or "form" in given or "where" in given)
    if not {"model", "data", "form"} <= set(merged):
        raise LuthierError("training needs a model, data and a form (or a Run that holds them).")
    return {**merged, "also": tuple(merged.get("also", ()))}


def _under(file: str | Path | None, recipe: str | None, trust: bool) -> dict[str, Any]:
    """The fields of a run that a run file or a recipe states."""
    if file is not None and recipe is not None:
        raise LuthierError(f"{file} is the run, and recipe={recipe!r} another one; name the recipe in the file.")
    if file is not None:
        found = read_run_file(file)
        found.check_trust(trust)
        return found.stated()
    if recipe is None:
        return {}
    read = read_recipe(recipe)
    return {**made(form_named(read.method), written(read)), "training": Training.from_dict(read.training)}
