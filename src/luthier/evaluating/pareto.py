"""The checkpoints of a plan of stages: what each can do, what it lost, and which are dominated by others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.core.files import sha256
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.records import recorded, replace_json
from luthier.core.storage.folder import adapter_folder, read_adapter
from luthier.core.storage.store import load
from luthier.evaluating.evaluate import evaluate
from luthier.evaluating.front import BASE, Front, Point, flagged
from luthier.evaluating.pareto_plot import plot
from luthier.evaluating.untrained import refuse_untrained
from luthier.training.base import load_base
from luthier.training.checkpoint import Checkpoint, checkpoints, read
from luthier.training.folder import read_run
from luthier.training.spec import Run
from luthier.training.stages.plan import Measured
from luthier.training.stages.work import PICTURE, PLAN, SCORES, TABLE, read_record


def pareto(
    folder: str | Path,
    measured: Measured | None = None,
    *,
    progress: bool = True,
    told: Callable[[str], object] = str,
) -> Front:
    """Scores the base and every checkpoint of every finished stage in the folder of a plan, on two sets of data.

    `measured` says on what. Default: as the plan does. Scores are kept by adapter and data in the folder, so that what
    was scored is not scored again; `pareto.json` and `pareto.png` are written. `told` hears a line for each checkpoint.
    Raises `LuthierError` where the plan measures nothing, and for data that cannot be scored.
    """
    root = path_of(folder)
    record = read_record(root)
    if measured is None:
        if record.get("measure") is None:
            raise LuthierError(f"the plan in {root} measures nothing; add [measure] with task and general to it.")
        with guarded(f"{root / PLAN} is damaged, or was changed by hand"):
            measured = Measured(**record["measure"])
    finished = [root / Path(each["folder"]).name for each in record["stages"] if each.get("sha256")]
    if not finished:
        raise LuthierError(f"no stage of the plan in {root} is finished; run it first.")
    scores = Scores(root / SCORES, measured, read_run(finished[0]), progress)
    points = []
    for number, stage in enumerate(finished):
        points += _points(stage, scores, base=number == 0, told=told)
    metrics = scores.metrics
    front = Front(flagged(points, *metrics), *metrics)
    replace_json(root / TABLE, front.to_dict())
    plot(front, root / PICTURE, f"{read_run(finished[0]).model}: {root.name}")
    return front


class Scores:
    """Both scores of a model, looked up among those that are kept."""

    def __init__(self, path: Path, measured: Measured, run: Run, progress: bool) -> None:
        """`run` tells the task of the model, and how rows are read."""
        self.path, self.measured, self.run, self.progress = path, measured, run, progress
        self.kept: dict[str, Any] = {}
        if path.is_file():
            with recorded(path) as kept:
                self.kept = {key: {**each, "metric": each["metric"]} for key, each in kept.items()}
        self.sides = [self._examples(source) for source in (measured.task, measured.general)]
        self.metrics: tuple[str, str] = ("", "")

    def _examples(self, source: str) -> data.Examples:
        return data.load(
            source, split="test", limit=self.measured.limit, task=self.run.task, preferences=True, columns=("task",)
        )

    def of(self, key: str, model: Callable[[], models.Loaded]) -> list[dict[str, Any]]:
        """Returns the score, interval and metric of each side; `model` is called where one is not known."""
        names = [_key(key, each, self.measured) for each in self.sides]
        for number, (name, examples) in enumerate(zip(names, self.sides, strict=True)):
            if name not in self.kept:
                self.kept[name] = self._measure(model(), examples, number)
                replace_json(self.path, self.kept)
        found = [self.kept[name] for name in names]
        self.metrics = (found[0]["metric"], found[1]["metric"])
        return found

    def _measure(self, loaded: models.Loaded, examples: data.Examples, number: int) -> dict[str, Any]:
        scorer = data.scorer_for(examples, self.measured.scorer if number == 0 else None)
        found = evaluate(
            loaded.model,
            loaded.processor,
            examples,
            scorer=scorer,
            batch=self.measured.batch,
            max_new_tokens=self.measured.max_new_tokens,
            progress=self.progress,
            keep_predictions=False,
        )
        return {"score": found.score, "interval": list(found.interval), "metric": next(iter(found.metrics))}


def _key(adapter: str, examples: data.Examples, measured: Measured) -> str:
    how = [adapter, examples.fingerprint, measured.scorer, measured.max_new_tokens]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()[:32]


def _points(stage: Path, scores: Scores, base: bool, told: Callable[[str], object]) -> list[Point]:
    """The checkpoints of a stage, the first one's base before them."""
    run = read_run(stage)
    model = Lent(run, stage)
    name = stage.name.partition("-")[2]
    found = []
    if base and run.from_adapter is None and models.fitted_task(model.spec) in models.WRITTEN:
        told("scoring the base")
        found.append(_point(BASE, 0, scores.of(_base_key(run), model.bare)))
    if run.update.sparse:  # at the end the adapter became another one, which its checkpoints are not
        steps = int(model.spec["measured"]["steps"])
        told(f"scoring {name} {steps}, the end alone")
        return [*found, _point(name, steps, scores.of(str(model.spec["sha256"]), model.adapted))]
    for each in _checkpoints(stage):
        told(f"scoring {name} {each.step}")
        adapter = sha256(each.folder / "adapter.safetensors")
        found.append(_point(name, each.step, scores.of(adapter, lambda each=each: model.at(each))))
    return found


def _point(stage: str, step: int, found: list[dict[str, Any]]) -> Point:
    task, general = found
    intervals = tuple(task["interval"]), tuple(general["interval"])
    return Point(stage, step, task["score"], general["score"], *intervals)


def _base_key(run: Run) -> str:
    return f"{BASE} {run.model} {run.training.precision} {run.training.quantize}"


def _checkpoints(stage: Path) -> list[Checkpoint]:
    """The whole checkpoints of a stage, by their steps."""
    whole = [read(folder) for folder in checkpoints(stage / "checkpoints")]
    return sorted((each for each in whole if each is not None), key=lambda each: each.step)


class Lent:
    """The model of a stage, loaded once, with the tensors of whichever checkpoint is asked for."""

    def __init__(self, run: Run, stage: Path) -> None:
        self.run, self.stage, self.spec = run, stage, read_adapter(stage)[1]
        self.loaded: models.Loaded | None = None

    def bare(self) -> models.Loaded:
        """Returns the base alone."""
        from luthier.core.adapters.attach import detach, find_state

        loaded = self._load()
        if find_state(loaded.model) is not None:
            detach(loaded.model)
        return loaded

    def adapted(self) -> models.Loaded:
        """Returns the model with the adapter that the stage ended with."""
        from luthier.core.adapters.attach import find_state

        loaded = self._load()
        if find_state(loaded.model) is None:
            load(loaded.model, adapter_folder(self.stage), self.run.name)
            refuse_untrained(loaded)
        return loaded

    def at(self, checkpoint: Checkpoint) -> models.Loaded:
        """Returns the model as it was at a checkpoint."""
        import torch
        from safetensors.torch import load_file

        from luthier.core.adapters.control import tensors

        loaded = self.adapted()
        with guarded(f"{checkpoint.folder} cannot be read"):
            stored = load_file(checkpoint.folder / "adapter.safetensors")
        with torch.no_grad():
            for key, tensor in tensors(loaded.model, self.run.name).items():
                tensor.copy_(stored[key])
        return loaded

    def _load(self) -> models.Loaded:
        if self.loaded is None:
            self.loaded = load_base(self.run, models.fitted_task(self.spec), self.spec["measured"].get("labels"))
        return self.loaded
