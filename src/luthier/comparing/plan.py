"""The runs of a study, each checked against its model and data before the first one starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import data, models
from luthier.comparing import rows
from luthier.comparing.methods import Method, resolve
from luthier.comparing.record import FILE, RUNS
from luthier.comparing.shots import check_shots
from luthier.comparing.sources import Sourced, sourced
from luthier.comparing.study import DataSet, Settings, Study
from luthier.core.adapters.count import count
from luthier.core.contracts.form import Form
from luthier.core.contracts.ranks import Ranks
from luthier.core.device import AUTO
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select
from luthier.measuring.allocation import resolve_targets
from luthier.methods.forms.full import Full
from luthier.training.spec import Run, Training


@dataclass(frozen=True)
class Shapes:
    """A model for a data set, without its weights."""

    empty: Any
    """On the meta device."""
    processor: Any
    head: tuple[str, ...]
    """Modules that the checkpoint lacks."""


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    model: str
    """Name in the study."""
    data: Sourced
    method: Method
    seed: int
    run: Run
    folder: Path
    """Where its record goes."""
    trainable: int | None
    """Trainable parameters, estimated; None where the data decide."""
    new_head: bool
    """Whether the checkpoint lacks the head, which is then drawn by the seed and knows nothing yet."""

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return (self.folder / FILE).is_file()

    @property
    def title(self) -> str:
        """A title for people to read."""
        return f"{self.model} · {self.data.name} · {self.method.name} · seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A study's runs, in the order in which they are made: every method of a seed before the next seed."""

    study: Study
    data: dict[str, Sourced]
    jobs: list[Job]
    folder: Path


def plan(study: Study, folder: Path) -> Plan:
    """Returns every run of the study, checked; raises one `LuthierError` with all that does not fit."""
    faults: list[str] = []
    read = {name: _try(faults, lambda name=name: _read(study, name, folder)) for name in study.data}
    methods = {name: _try(faults, lambda name=name: method_of(study, name)) for name in study.methods}
    _try(faults, lambda: check_names(study.methods))
    _refuse(faults)
    found = {name: each for name, each in read.items() if each is not None}
    jobs: list[Job] = []
    for model, name in study.pairs():
        shapes = _try(faults, lambda m=model, n=name: _shapes(study, m, found[n]), f"{model} on {name}")
        made: list[Job] = []
        for method in methods.values() if shapes else ():
            assert shapes is not None and method is not None
            made += _try(
                faults,
                lambda m=model, n=name, k=method, s=shapes: _jobs(study, m, found[n], k, s, folder),
                f"{model} on {name}, {method.name}",
            ) or []  # fmt: skip
        runs = [job.run for job in made if job.method.kind != "untouched"]
        rows.trained_on(runs, lambda make, where=f"{model} on {name}": _try(faults, make, where))
        jobs += made
    _refuse(faults)
    return Plan(study, found, sorted(jobs, key=lambda job: study.seeds.index(job.seed)), folder)


def checked(study: Study) -> Plan:
    """Returns the plan alone; what it has to write goes into a temporary folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return plan(study, Path(folder))


def _try(faults: list[str], make: Callable[[], Any], where: str = "") -> Any:
    try:
        return make()
    except LuthierError as error:
        faults.append(f"{where}: {error}" if where else str(error))
        return None


def _refuse(faults: list[str]) -> None:
    unique = list(dict.fromkeys(faults))
    if len(unique) == 1:
        raise LuthierError(unique[0])
    if unique:
        listed = "".join(f"\n  {fault}" for fault in unique)
        raise LuthierError(f"nothing was started: {len(unique)} things do not fit:{listed}")


def method_of(study: Study, name: str) -> Method:
    """Returns a method under what the study says of it."""
    method = resolve(name, study.settings.get(name, Settings()), study.budget)
    Training.from_dict(same_anywhere(study.training | method.over))
    return method


def _read(study: Study, name: str, folder: Path) -> Sourced:
    given = _with_task(study, study.data[name])
    training = Training.from_dict(same_anywhere(study.training | given.training))
    if study.tune_steps is not None:
        dataclasses.replace(training, steps=study.tune_steps)
    return sourced(name, given, training, study.seeds, folder)


def same_anywhere(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a study's training; raises for what would be another thing on another machine, as a study
    may be gone on with there and its rows stand side by side."""
    if settings.get("precision") == AUTO or settings.get("device", AUTO) != AUTO:
        raise LuthierError(
            "a study is computed in one precision, wherever it is gone on with: name it (float32, bfloat16, float16), "
            "and say the device by --device or LUTHIER_DEVICE."
        )
    return settings


def _with_task(study: Study, given: DataSet) -> DataSet:
    """The data with the task that the classes of its models are for, where these have encoders and rows answers."""
    if given.task is not None:
        return given
    known = {models.task_of(study.models[model], None) for model in given.models or study.models}
    task = known.pop() if len(known) == 1 else None
    if task is None or data.load(given.train[0], limit=1, split="train", named=given.columns).task != "causal-lm":
        return given
    return dataclasses.replace(given, task=task)


# --- models ----------------------------------------------------------------------------------------


def _shapes(study: Study, model: str, read: Sourced) -> Shapes:
    """The model's shapes and its new head, tried on every row of the tests."""
    import torch

    from luthier.training.progress import quiet

    source, training = study.models[model], Training.from_dict(study.training | study.data[read.name].training)
    with quiet():
        config, processor = models.config_of(source), models.processor_of(source, read.task)
        config.num_labels = len(read.labels) if read.labels else 1
        head: tuple[str, ...] = ()
        if read.labels or read.task == "regression":
            head = tuple(models.load(source, task=read.task, labels=read.labels).new_modules)
        try:
            with torch.device("meta"):
                empty = models.class_of(read.task, config).from_config(config, trust_remote_code=models.trusted())
        except ValueError as error:
            raise LuthierError(f"{source} cannot serve {read.task}: {str(error).splitlines()[0]}") from None
        rows.tested_on(read, processor, training.max_length, models.positions(empty))
        rows.held_texts(study, read, processor)
    return Shapes(empty, processor, head)


# --- runs ------------------------------------------------------------------------------------------


def _jobs(study: Study, model: str, read: Sourced, method: Method, shapes: Shapes, folder: Path) -> list[Job]:
    """A method's runs on a model and data set, one per seed."""
    fitted = _fitted(method, shapes)
    trainable = 0 if fitted.kind == "untouched" else _trainable(fitted, shapes)
    made = []
    for seed in study.seeds:
        place = folder / RUNS / model / read.name / file_name(method.name) / f"seed-{seed}"
        run = run_of(study, model, read, fitted, seed, place / "run")
        if fitted.kind == "peft" and run.training.best is not None:
            raise LuthierError(f"{fitted.name} is peft's own model, whose best evaluation is not kept; leave best out.")
        if fitted.kind == "peft":
            unread = ("noise_scale", "cache_frozen")
            run.training.refuse(unread, f"which goes by Luthier's adapters, and {fitted.name} is peft's")
        if fitted.shots:
            new = study.data[read.name].max_new_tokens
            check_shots(read, fitted, run, shapes.processor, models.positions(shapes.empty), new)
        made.append(Job(model, read, fitted, seed, run, place, trainable, bool(shapes.head)))
    return made


def file_name(method: str) -> str:
    """Returns `peft-lora` of peft:lora, `mine` of a recipe's path."""
    return (Path(method).stem if method.endswith(".toml") else method).replace(":", "-").replace("&", "-")


def check_names(methods: Iterable[str]) -> None:
    """Raises for two methods whose runs would share a folder, where the second would pass for done."""
    seen: dict[str, str] = {}
    for method in methods:
        folder = file_name(method).casefold()  # which many file systems do
        other = seen.setdefault(folder, method)
        if other != method:
            raise LuthierError(
                f"the methods {other!r} and {method!r} would share one folder of runs, {file_name(method)}; give the "
                "file of one another name."
            )


def run_of(study: Study, model: str, read: Sourced, method: Method, seed: int, out: Path) -> Run:
    """The run of `luthier.train`: defaults under the recipe under the study under the data set under the method."""
    given = study.data[read.name]
    settings = {**method.training, **study.training, **given.training, **method.over, "seed": seed}
    return Run(
        model=study.models[model],
        data=read.train,
        **method.chosen(),
        out=str(out),
        task=read.task,
        eval_data=read.validation,
        training=Training.from_dict(settings),
        limit=given.rows,
        columns=given.columns,
        trust_remote_code=models.trusted(),
    )


def _fitted(method: Method, shapes: Shapes) -> Method:
    """The method on this model: sites that are there, and for `base` its head."""
    if method.shots:
        return method
    if method.kind == "base":
        return _base(method, shapes.head)
    if method.usual and not _matches(shapes.empty, method.where):
        note = f"the recipe's sites ({method.where}) are not in this model: the method's own ({method.form.where})"
        method = dataclasses.replace(method, where=None, notes=(*method.notes, note))
    method.objective.check_form(method.form)
    sites, ranks, rank_budget = resolve_targets(shapes.empty, method.form, method.where, method.ranks, method.budget)
    wrong = [site for site in sites if site.kind not in method.form.kinds]
    if wrong:
        raise LuthierError(
            f"{method.form.name()} acts on sites of kind {', '.join(method.form.kinds)}; {wrong[0]} is not."
        )
    method.update.check_form(method.form, sites)
    for targeted in method.also:
        method.update.check_beside(targeted.form, select(shapes.empty, targeted.place))
    if method.kind == "peft" and (method.ranks is not None or any(site.kind != "affine" for site in sites)):
        raise LuthierError(f"{method.name} is compared at linear layers of one rank; choose such sites, and no ranks.")
    if ranks is not None and not any(ranks.statistics(method.form)) and rank_budget.parameters is not None:
        ranks.allocate(sites, {}, rank_budget)  # too small a budget is told now
    return method


def _matches(model: Any, where: str | None) -> bool:
    try:
        return bool(select(model, where or ""))
    except LuthierError:
        return False


def _base(method: Method, head: tuple[str, ...]) -> Method:
    """The base: a new head alone is trained; without one nothing is."""
    if not head:
        return dataclasses.replace(method, kind="untouched", notes=("the model as it came: nothing is trained",))
    where = " | ".join(f"params({module}.*)" for module in head)
    return dataclasses.replace(method, kind="luthier", form=Full(), where=where)


def _trainable(method: Method, shapes: Shapes) -> int | None:
    """Trainable parameters, a new head included; None where ranks follow from measurements."""
    sites, ranks, rank_budget = resolve_targets(shapes.empty, method.form, method.where, method.ranks, method.budget)
    if set(method.form.needs) - {"weight"}:
        return None
    form = method.form if ranks is None else _even(method.form, ranks, sites, rank_budget)
    if form is None:
        return None
    body = count(shapes.empty, form, method.where)["trainable"]
    body += sum(count(shapes.empty, targeted.form, targeted.place)["trainable"] for targeted in method.also)
    if isinstance(form, Full):
        return body
    heads = [shapes.empty.get_submodule(path) for path in shapes.head]
    return body + sum(p.numel() for module in heads for p in module.parameters())


def _even(form: Form, ranks: Ranks, sites: Any, rank_budget: Any) -> Form | None:
    """The form at the one rank that an allocation without measurements gives."""
    if any(ranks.statistics(form)):
        return None
    return form.with_rank(max(ranks.allocate(sites, {}, rank_budget).values()))
