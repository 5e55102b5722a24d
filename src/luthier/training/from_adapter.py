"""A run that goes on from a finished adapter: ours, or one of another library, which is read once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.cached import cached
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.contracts.objective import BASE, Objective
from luthier.core.errors import LuthierError
from luthier.core.files import sha256
from luthier.core.paths import path_of
from luthier.core.storage.folder import adapter_at, adapter_folder, read_adapter
from luthier.core.version import __version__
from luthier.training.spec import COMES, Run

KIND = "imported"
"""The kind of folder in the cache."""
FIELD = "from_adapter"
EARLIER = ("ranks", "init", "budget", "also")
"""How the adapter itself once started: a run that goes on has it from the adapter."""


def folder_of(source: str, model: str, task: str | None = None) -> Path:
    """Returns the folder of an adapter: a run's, an adapter's own, or what `source`, of another library, becomes.

    The latter is imported for the base `model` at its first use, and kept in `$LUTHIER_CACHE/imported`. Raises
    `LuthierError` where there is no adapter, and for one that has no equal here.
    """
    folder = path_of(source)
    if adapter_at(source) or not folder.is_dir():
        return adapter_folder(source)
    return cached(KIND, _key(folder, model, task), lambda made: _imported(folder, made, model, task)) / "adapter"


def _key(folder: Path, model: str, task: str | None) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    held = [(path.name, sha256(path)) for path in files]
    return hashlib.sha256(json.dumps([held, model, task, __version__]).encode()).hexdigest()[:32]


def _imported(folder: Path, made: Path, model: str, task: str | None) -> dict[str, Any]:
    from luthier.interop.import_adapter import import_adapter, source_of
    from luthier.models import load

    source = source_of(folder, None)  # before the base is loaded
    base = load(model, task=task or source.task(folder) or "causal-lm")
    with tempfile.TemporaryDirectory() as work:  # the cache holds a lock where it makes the folder
        done = import_adapter(
            folder,
            Path(work) / "adapter",
            base=base.model,
            source=source,
            base_name=model,
            measured={"task": base.task},
            processor=base.processor,
        )
        shutil.copytree(done, made / "adapter")
    return {"source": str(folder), "library": source.name(), "base": model}


def brought(source: str, model: str, task: str | None = None) -> dict[str, Any]:
    """Returns the fields of a run that an adapter brings: its `form` and `where`."""
    _, spec = read_adapter(folder_of(source, model, task))
    part = spec["parts"][0]
    form = find("forms", part["form"], Form).restored(part["settings"])
    return {"form": form, "where": None if part["where"] == form.where else part["where"]}


def form_name(source: str) -> str | None:
    """Returns the name of the form of an adapter of Luthier; None of another library's, which was not read yet."""
    return str(read_adapter(source)[1]["parts"][0]["form"]) if adapter_at(source) else None


def resolved(stated: Mapping[str, Any], chosen: bool) -> dict[str, Any]:
    """Returns the fields of a run with the form of the adapter that it goes on from, unless one was `chosen`."""
    found = dict(stated)
    source, model = found.get(FIELD), found.get("model")
    if source is None or model is None or chosen:
        return found
    return found | brought(source, model, found.get("task"))


def is_run(source: str) -> bool:
    """Returns whether an adapter is that of a finished run."""
    try:
        return run_file_of(source).is_file()
    except LuthierError:
        return False


def run_file_of(source: str) -> Path:
    """Returns run.json of the finished run that an adapter is of; raises `LuthierError` for an adapter by itself."""
    folder = path_of(source)
    found = next((each / "run.json" for each in (folder, folder.parent) if (each / "run.json").is_file()), None)
    if found is None or not adapter_at(source):
        raise LuthierError(
            f"{source} is not a finished run, so it does not say what is trained on what; name a model and data."
        )
    return found


def extending(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a finished run says of a run that extends it: how the adapter began is its own."""
    found = {name: value for name, value in stated.items() if name not in (*EARLIER, FIELD, "out", "calibration")}
    objective = found.get("objective")
    if objective is not None and refers(objective) and objective.to_dict()["reference"] is None:
        found["objective"] = dataclasses.replace(objective, reference=BASE)  # what it compared with so far
    return found


def compared_with_start(run: Run) -> Run:
    """Returns the run whose objective compares with the adapter that it starts from, unless it names a reference."""
    source, objective = run.from_adapter, run.objective
    if source is None or not refers(objective) or objective.to_dict()["reference"] is not None:
        return run
    reference = str(folder_of(source, run.model, run.task))
    return dataclasses.replace(run, objective=dataclasses.replace(objective, reference=reference))


def refers(objective: Objective) -> bool:
    """Returns whether an objective compares with a reference that it can name."""
    return objective.compares and "reference" in objective.settings()


def check_start(run: Run) -> None:
    """Raises for an adapter that is not there, is of other forms than the run's, or would be overwritten by the run."""
    if run.from_adapter is None:
        return
    folder = folder_of(run.from_adapter, run.model, run.task)
    if folder.resolve().is_relative_to(run.folder.resolve()):
        raise LuthierError(f"{run.from_adapter} lies in {run.folder}, which the run would fill; choose another out.")
    found = brought(run.from_adapter, run.model, run.task)
    form, where = found["form"], found["where"] or found["form"].where
    if (run.form, run.where or run.form.where) != (form, where):
        raise LuthierError(
            f"{run.from_adapter} is {_told(form, where)}, and the run says {_told(run.form, run.where)}: {COMES}."
        )


def _told(form: Form, where: str | None) -> str:
    own = {name: getattr(form, name) for name, (_, field) in form.settings().items()}
    differing = [f"{name}={own[name]!r}" for name, (_, each) in form.settings().items() if own[name] != each.default]
    return f"{form.name()}({', '.join(differing)}) at {where or form.where!r}"


def fingerprint_of(run: Run) -> str | None:
    """Returns the checksum of the tensors that a run starts from, of one that goes on from an adapter."""
    if run.from_adapter is None:
        return None
    return str(read_adapter(folder_of(run.from_adapter, run.model, run.task))[1]["sha256"])
