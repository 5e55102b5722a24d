"""One training session: prepare, load, attach, show, train, save."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from rich.console import Console
from transformers import TrainerCallback, set_seed

from luthier import data, models
from luthier.core.adapters.shard import shard
from luthier.core.errors import LuthierError
from luthier.core.guard import written
from luthier.core.owner import owned
from luthier.core.records import replace_text
from luthier.core.storage import store
from luthier.data.labels import labels_in_order
from luthier.models import Loaded, licence_of
from luthier.training import apart, judged, metrics, routing
from luthier.training import folder as folders
from luthier.training.arguments import arguments
from luthier.training.attachment import attach_all
from luthier.training.base import check_fits, load_base
from luthier.training.best import Best
from luthier.training.card import card
from luthier.training.checkpoint import Checkpoint, go_on, newest
from luthier.training.command import command
from luthier.training.context import loading_for, training_context
from luthier.training.curves import curves_of
from luthier.training.estimate import estimate
from luthier.training.from_adapter import compared_with_start
from luthier.training.frozen import Frozen, begun, frozen_of
from luthier.training.join import join
from luthier.training.launched import check_optimiser, check_processes, check_services
from luthier.training.moments import AsToldNow, ByTheClock
from luthier.training.noise_scale import noise_scale
from luthier.training.pack import batches_of, computed
from luthier.training.penalised import refuse_alone
from luthier.training.plot import FILE as PLOT
from luthier.training.plot import plot
from luthier.training.prepare import Prepared, prepare
from luthier.training.processes import is_main, processes
from luthier.training.progress import quiet, shown
from luthier.training.reference import referred
from luthier.training.replace import beside
from luthier.training.report import Plan, overview, plan_of, steps_of
from luthier.training.result import Result
from luthier.training.rollouts import log as rollouts
from luthier.training.rollouts.online import Online, check_online
from luthier.training.rollouts.rewards import Reward
from luthier.training.sparse import sparsify
from luthier.training.spec import Run
from luthier.training.teacher import check_teacher, teacher_of
from luthier.training.trainer import Diverged, Trainer
from luthier.training.writing import Writer

SHARE = 10
"""The number of evaluations and checkpoints of a run by default."""


class Session:
    """The steps of `luthier.train`, in order."""

    trainer_class: ClassVar[type[Trainer]] = Trainer

    def __init__(
        self,
        run: Run,
        progress: bool = True,
        notes: Sequence[str] = (),
        callbacks: Sequence[TrainerCallback] = (),
        base: Loaded | None = None,
    ) -> None:
        """`notes` are lines to print ahead of the overview; without `progress` nothing is printed.

        `callbacks` are the caller's own; `base` is the run's model where it is in memory already.
        """
        self.run, self.notes, self.callbacks, self.base = compared_with_start(run), notes, callbacks, base
        self.rewards: list[Reward] = []
        self.console = Console(stderr=True, quiet=not (progress and is_main()))

    def train(self, resume: bool, overwrite: bool) -> Result:
        """Runs the whole session."""
        with loading_for(self.run):
            return self._train(resume, overwrite)

    def _train(self, resume: bool, overwrite: bool) -> Result:
        run = self.run
        check_services(run.training.report_to)
        check_processes(run)
        check_optimiser(run.training.optimizer)
        join()
        if not is_main():
            return self.work(resume, resume and folders.holds_run(run.folder))
        folders.claim(run, resume, overwrite)
        with owned(run.folder):
            folders.mend(run.folder)
            return self.work(resume, folders.claim(run, resume, overwrite))  # again, now that nobody else is in it

    def work(self, resume: bool, goes_on: bool) -> Result:
        """Returns the run, in a folder that is this process's own."""
        run = self.run
        if resume and not goes_on:
            self.console.print(f"{run.folder} holds no run yet: starting from the beginning.", highlight=False)
        with quiet():
            prepared = self.prepare()
            check_teacher(run, prepared.processor)
            self.rewards = check_online(run, prepared)
            set_seed(run.training.seed)  # new heads, the form's start
            loaded = self.load(prepared)
            prepared = referred(run, loaded, prepared, self.console)
            begun = goes_on and self.newest() is not None  # else it is initialised again
            known = folders.read_record(run.folder)["measured"] if begun else None
            evidence = self.attach(loaded, prepared, known)
            return self.fit(prepared, loaded, evidence, goes_on)

    def prepare(self) -> Prepared:
        """Returns the rows of the run."""
        refuse_alone(self.run)
        return prepare(self.run)

    def attach(self, loaded: Loaded, prepared: Prepared, known: dict[str, Any] | None) -> dict[str, Any]:
        """Attaches what is trained, and returns what was measured for it."""
        return attach_all(self.run, loaded, prepared, self.console, known)

    def equip(self, trainer: Trainer, prepared: Prepared, loaded: Loaded) -> None:
        """Gives the trainer what a run of several tasks has; nothing here."""

    def trained(self, trainer: Trainer, prepared: Prepared, loaded: Loaded) -> None:
        """Looks at the trainer behind the last step; nothing here."""

    def load(self, prepared: Prepared) -> Loaded:
        """The base that the form is attached to."""
        if self.base is None:
            return load(self.run, prepared)
        check_fits(self.base, prepared, self.run.training)
        return self.base

    def fit(self, prepared: Prepared, loaded: Loaded, evidence: dict[str, Any], goes_on: bool) -> Result:
        """Trains the attached adapter and writes what the folder is to hold."""
        run, model = self.run, loaded.model
        features = [
            labels_in_order(part, prepared.examples.labels, model.config)
            for part in (prepared.train, prepared.evaluation)
        ]
        collator = data.collator_for(prepared.task, loaded.processor)
        before = folders.read_record(run.folder) if goes_on else None
        batches = batches_of(run, model, features[0], before, prepared.task)
        online = Online(run, model, prepared, self.rewards, collator) if run.objective.samples else None
        able = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        with training_context(run, model):
            plan = plan_of(run, prepared, model, steps_of(run, len(prepared.train), processes()))
            record = folders.record(run, prepared, model, command(run), plan.steps, evidence)
            frozen = self.frozen(model, plan, features, record, before)
            if not self.console.quiet:
                memory = estimate(model, features[0], collator, run.objective, run.training.batch)
                for line in self.notes:
                    self.console.print(line, markup=False, highlight=False, soft_wrap=True)
                told = {"batches": batches.told, "frozen blocks": frozen.told}
                self.console.print(overview(run, prepared, model, plan, memory, told), highlight=False)
            record |= {"packed": batches.packed, "shared_prompts": batches.shared, "batches": batches.told}
            record |= {"frozen": frozen.record()}
            checkpoint, run_id = self.start(record, goes_on, model)
            with shown(self.console, plan.steps) as callbacks:
                callbacks += [AsToldNow()] if run.training.save_every else [AsToldNow(), ByTheClock()]
                if run.training.shard:
                    shard(model)
                best = Best(run, model, is_main()) if run.training.best else None
                callbacks += [best] if best else []
                trainer = self.trainer(prepared, model, plan, (features[0], features[1]), collator, callbacks, run_id)
                trainer.online = online
                if online is not None:
                    online.run_id = run_id
                self.equip(trainer, prepared, loaded)
                with (
                    computed(batches, model),
                    begun(frozen, run, model, (plan.steps, plan.per_epoch)),
                    teacher_of(run, model) as trainer.teacher,
                ):
                    stopped = best is not None and checkpoint is not None and best.resumed(checkpoint.step)
                    if checkpoint is not None and (stopped or checkpoint.step >= plan.steps):
                        trainer.restore(checkpoint.folder)
                    else:
                        self.step(trainer, checkpoint, goes_on)
                    trainer.accelerator.wait_for_everyone()
                chosen = best.restore() if best else {}
            self.trained(trainer, prepared, loaded)
            held = dict(model.named_parameters())
            resting = tuple(name for name in able if name in held and not held[name].requires_grad)
        return replace(self.finish(prepared, loaded, plan, record, chosen), resting=resting)

    def frozen(self, model: Any, plan: Plan, features: Any, record: dict[str, Any], before: Any) -> Frozen:
        """What is kept of the blocks below all that is trained."""
        return frozen_of(self.run, model, features, (plan.steps, plan.per_epoch), record, before)

    def step(self, trainer: Trainer, checkpoint: Checkpoint | None, goes_on: bool) -> None:
        """Trains; a new run that is refused before its first step leaves its folder free for the next try."""
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
        except Diverged:
            raise
        except LuthierError:
            if not goes_on and trainer.state.global_step == 0 and is_main():
                folders.withdraw(self.run.folder)
            raise

    def trainer(
        self,
        prepared: Prepared,
        model: Any,
        plan: Plan,
        features: tuple[Any, Any],
        collator: Any,
        callbacks: Sequence[TrainerCallback],
        run_id: str,
    ) -> Trainer:
        """Returns what trains, with all that listens to it."""
        run, shifted = self.run, prepared.task == "causal-lm"
        log = metrics.Metrics(run.folder, run_id, curves_of(run, prepared.examples))
        table = routing.RoutingTable(run.folder, plan.steps)
        args = arguments(run, plan.steps, every(run, plan.steps), bool(features[1]))
        told = [log, table, *callbacks, *self.callbacks]
        made = self.trainer_class(run, model, args, features, collator, shifted, told, run_id, plan.per_epoch)
        log.trainer, table.routers = made, made.routers
        if judged.told_of(prepared.task, prepared.examples.labels):
            made.judging = partial(judged.Judge, prepared.task, names_of(model))
        if prepared.asked is not None:
            made.apart.append(Writer(run, model, prepared.processor, prepared.asked).figures)
        if prepared.held is not None and apart.told_of(prepared.examples):
            further = apart.apart_of(run, model, prepared.processor, prepared.held, prepared.evaluation)
            made.apart.append(further.figures)
        return made

    def newest(self) -> Checkpoint | None:
        """Returns the newest whole checkpoint of the run in the folder."""
        return newest(self.run.folder / "checkpoints", folders.ids_of(folders.read_record(self.run.folder)))

    def start(self, record: dict[str, Any], goes_on: bool, model: Any) -> tuple[Checkpoint | None, str]:
        """Writes the record of a new run, or finds where an old one resumes; with the run's id."""
        folder = self.run.folder
        if not goes_on:
            if is_main():
                with written(str(folder)):
                    folders.begin(folder, record)
            return None, record["id"]
        folders.check_same_inputs(folder, record, model)
        ids, checkpoint = folders.ids_of(folders.read_record(folder)), self.newest()
        step = checkpoint.step if checkpoint else 0
        if checkpoint is not None and checkpoint.run is None:
            warnings.warn(
                f"{checkpoint.folder} was written by an older Luthier and bears no run's id; that it is of this run is "
                "taken on trust.",
                stacklevel=2,
            )
        if is_main():
            with written(str(folder), partial(go_on, folder)):
                metrics.cut(folder, step, ids)
                routing.cut(folder, step)
                rollouts.cut(folder, step, ids)
                folders.note_resumed(folder, step, record)
        self.console.print(f"going on after step {step}" if step else "no complete checkpoint: from the beginning")
        return checkpoint, str(ids[0])

    def finish(
        self, prepared: Prepared, loaded: Loaded, plan: Plan, record: dict[str, Any], chosen: dict[str, Any]
    ) -> Result:
        """Saves the adapter with its card, draws the curve; `chosen` is what is told of the best evaluation."""
        run = self.run
        lines = metrics.read(run.folder)
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        held = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
        evals = [loss for step, loss in held if not chosen or step == chosen["step"]]
        seconds = metrics.seconds(lines)
        text = card(run, prepared, plan, lines, record)
        if is_main():
            with written(str(run.folder), partial(go_on, run.folder)):
                replace_text(run.folder / "README.md", text)
                title = f"{run.model}, {run.form.name()}, {run.data}"
                rollouts.table(run.folder)
                plot(lines, run.folder / PLOT, title, curves_of(run, prepared.examples))
                if loads := routing.read(run.folder):
                    routing.plot(loads, run.folder / routing.PLOT, title)
        measured = {"steps": plan.steps, "loss": losses[-1][1] if losses else None, "seconds": seconds}
        measured |= {"eval_loss": evals[-1]} if evals else {}
        scale = noise_scale(lines)
        measured |= {} if scale is None else {"noise_scale": scale}
        measured |= {"task": prepared.task, "labels": prepared.examples.labels}
        measured |= {"ranks": record["measured"]} if record["measured"] else {}
        measured |= {"update": record["run"]["update"]} | ({"best": chosen} if chosen else {})
        measured |= chat_of(prepared)
        if run.update.sparse:
            sparsify(loaded.model, run.name)
        if is_main() or run.training.shard:  # of a sharded base, every process holds a part
            with beside(run.folder) if is_main() else nullcontext():
                store.save(
                    loaded.model,
                    run.folder / "adapter",
                    run.name,
                    base=run.model,
                    measured=measured,
                    card=text,
                    license=run.license,
                    base_license=licence_of(run.model),
                )
        return Result(
            adapter=run.folder / "adapter",
            folder=run.folder,
            losses=losses,
            eval_loss=evals[-1] if evals else None,
            trainable=plan.trainable,
            total=plan.total,
            seconds=seconds,
            model=loaded.model,
            processor=loaded.processor,
            eval_losses=held,
        )


def names_of(model: Any) -> list[str]:
    """Returns the classes of a model, in its order; empty where it has none."""
    return [name for _, name in sorted((getattr(model.config, "id2label", None) or {}).items())]


def chat_of(prepared: Prepared) -> dict[str, Any]:
    """Returns how conversations were rendered, for the adapter's spec; empty without conversations or template."""
    if prepared.task not in ("causal-lm", "reward") or not prepared.processor.chat_template:
        return {}
    templates = (row.template for row in prepared.examples.rows if row.messages is not None)
    shared = next(templates, None)
    if shared is None:
        return {}
    for each in templates if shared else ():
        shared = {name: value for name, value in shared.items() if name in each and each[name] == value}
    return models.Chat(prepared.processor.chat_template, shared).kept()


def load(run: Run, prepared: Prepared) -> Loaded:
    """Loads the base of a run, with the classes of its rows."""
    place = "cpu" if run.training.shard else None  # from where it is split, block by block
    return load_base(run, prepared.task, prepared.examples.labels, place)


def every(run: Run, steps: int) -> tuple[int, int]:
    """Returns (steps between evaluations, steps between checkpoints)."""
    usual = max(1, steps // SHARE)
    return run.training.eval_every or usual, run.training.save_every or usual
