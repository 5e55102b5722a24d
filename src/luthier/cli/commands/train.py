"""`luthier train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Flags, Given, Signed, Telling, option
from luthier.cli.stopped import run_stopped
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.methods.recipe import Recipe
    from luthier.training import Run
    from luthier.training.runfile import RunFile

OWN = ("form", "training", "model", "data", "calibration")
"""Fields of a run that are no flags: the command has its own for them."""


@dataclass(frozen=True)
class Train(Telling, Signed):
    """Fine-tune a model on data.

    The flags of the method follow from --method: `luthier train --method lora --help` shows them. A recipe
    stands under the flags, and both over the defaults.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier train smollm2-135m train.jsonl",
        'luthier train smollm2-135m gym:chain_sum --method wegeft --rank 64 --where "q_proj, v_proj" --out run',
        "luthier train path/to/model train.csv --recipe loreft-glue --epochs 5",
        "luthier train smollm2-135m train.jsonl --method lora --ranks gelora --budget 0.5%",
        "luthier train smollm2-135m train.jsonl --method full --update lisa --gamma 1",
        "luthier train smollm2-135m train.jsonl --objective masked_thought --p 0.4",
        "luthier train smollm2-135m pairs.jsonl --objective dpo --beta 0.1",
        "luthier train smollm2-135m gym:spell_backward --objective grpo --reward data --reward 0.2*regex:^[a-z]+$",
        "luthier train smollm2-135m pool.jsonl --select got_d --select-rows 2000 --target task.jsonl",
        "luthier train smollm2-135m train.jsonl --method lora --dry-run",
        "luthier train smollm2-135m train.jsonl --out run --resume",
        "luthier train smollm2-135m train.jsonl --recipe lora --save-config run.toml --dry-run",
        "luthier train run.toml --lr 1e-4 --out second",
        "luthier train plan.toml",
        "luthier train smollm2-135m more.jsonl --from run --out second",
        "luthier train --from run --steps 500 --out longer",
    )

    model: str | None = None
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`); or a run file (.toml, .yaml or
    .json, run.json of a run too), which names model, data and settings, or those of several adapters ([[adapter]]),
    which are then trained at once. It comes first, and flags go before it.
    Default: what the finished run of --from was of, with its data and settings."""
    data: str | None = None
    """A file (.jsonl, .csv, .parquet, …), a folder, a hub id or gym:<task>. Default: what the run file says."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: wegeft; `luthier list forms` shows all. A recipe of
    the same name is taken by --recipe alone."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file."""
    resume: bool = field(default=False, kw_only=True)
    """Resume from the last checkpoint in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds a run."""
    save_config: str | None = field(default=None, kw_only=True)
    """Write the run file that repeats this run (.toml, .yaml or .json)."""
    dry_run: bool = field(default=False, kw_only=True)
    """Stop before training: show the sites, the parameters, and the tokens of the first row."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.chosen import component_flags
        from luthier.methods.recipe import form_named
        from luthier.training import Run, Training
        from luthier.training.from_adapter import is_run

        start = option(tokens, "--from")
        bare = not tokens or tokens[0].startswith("-")
        extended = start if bare and start is not None and is_run(start) else None  # else it is refused when it is run
        file = _file(None if bare else tokens[0], extended)
        method, recipe = _chosen(option(tokens, "--method"), option(tokens, "--recipe"), file, start)
        form = Flags(form_named(method), f"Settings of {method}")
        return [Flags(Run, "Run", OWN), Flags(Training, "Training"), form, *component_flags(tokens, recipe)]

    def do(self, given: Given) -> dict[str, Any] | None:
        from luthier.cli.base import next_step
        from luthier.data import kind_of
        from luthier.training.objective import chosen_by_rows
        from luthier.training.planfile import is_plan
        from luthier.training.runfile import values_of

        if self.model is not None and is_plan(self.model):
            return self.plan(given)
        run = self.resolved(given)
        notes = [*self.taken(run.from_adapter), *chosen_by_rows(self.stated(given), run)]
        if self.save_config is not None:
            from luthier.training.runfile import save_run_file

            save_run_file(run, self.save_config)
            say(f"{self.save_config} holds the run.")
        if self.dry_run:
            from luthier.cli.dry_run import dry_run

            return {"dry_run": True, "run": values_of(run), **dry_run(run, notes)}
        from luthier.training.folder import read_record
        from luthier.training.processes import is_main
        from luthier.training.session import Session

        result = Session(run, notes=notes).train(self.resume, self.overwrite)
        if not is_main():
            return None
        share = result.trainable / result.total
        say(f"{result.folder} holds the run, {result.adapter} the adapter ({result.trainable:,} numbers, {share:.3%}).")
        layout = read_record(result.folder).get("layout", "")
        unscored = layout == "text" or kind_of(layout) == "judged"  # no answers, or single ones that are judged
        source = None if unscored else run.eval_data or run.data
        told = run.columns, run.skip_bad_rows, run.trust_remote_code
        say(next_step(run.model, source, result.folder, *told))
        if source == run.data and os.path.isfile(os.path.expanduser(run.data)):
            say(f"It was trained on rows of {run.data}; for a score, take rows that it has not seen.")
        figures = {name.replace(" ", "_"): value for name, value in result.figures().items()}
        return {"folder": str(result.folder), "adapter": str(result.adapter), **figures}

    def plan(self, given: Given) -> dict[str, Any] | None:
        """Trains the adapters of a plan at once."""
        from luthier.cli.dry_run import dry_run
        from luthier.training import Run
        from luthier.training.planfile import runs_of
        from luthier.training.runfile import values_of
        from luthier.training.together import train_at_once

        trust = bool(given.get(Run, {}).get("trust_remote_code"))
        said = [name for fields in given.values() for name in fields if name != "trust_remote_code"]
        said += [name for name in ("data", "method", "recipe", "save_config") if getattr(self, name) is not None]
        if said:
            raise LuthierError(
                f"{self.model} is a plan of several adapters, which says {said[0]} for each; write it there. Beside a "
                "plan stand --resume, --overwrite, --dry-run and --trust-remote-code."
            )
        runs = runs_of(str(self.model), trust)
        if self.dry_run:
            for run in runs:
                dry_run(run, [f"adapter {run.name} of {self.model}"])
            return {"dry_run": True, "runs": [values_of(run) for run in runs]}
        say(f"{len(runs)} adapters: {', '.join(run.name for run in runs)}")
        results = train_at_once(runs, self.resume, self.overwrite, say)
        for run, result in zip(runs, results, strict=True):
            loss = f", loss {result.losses[-1][1]:.4f}" if result.losses else ""
            say(f"{run.name}: {result.adapter} ({result.trainable:,} numbers{loss})")
        return {"adapters": {run.name: {"folder": str(r.folder)} for run, r in zip(runs, results, strict=True)}}

    def stopped(self, given: Given) -> str:
        from luthier.training import Run

        return run_stopped(given.get(Run, {}).get("out", Run.out))

    def taken(self, start: str | None = None) -> list[str]:
        """Returns where the settings come from that no flag sets: the recipe, or the method's own defaults.

        `start` is the adapter that the run goes on from.
        """
        from luthier.cli.whose import summary
        from luthier.methods.recipe import recipe_files

        file = _file(self.model, start)
        method, recipe = _chosen(self.method, self.recipe, file)
        if start is not None and self.recipe is None and self.method is None and (file is None or self.model is None):
            return [f"no method: the adapter of {start} goes on"]
        if file is not None and self.recipe is None:
            return [f"run file {file.path}" + (f", over the recipe {file.named}" if file.named else "")]
        if recipe is not None:
            return summary(recipe)
        named = f"; --recipe {method} has those of its source" if method in recipe_files() else ""
        return [f"no recipe: what no flag sets is {method}'s own default and that of training{named}"]

    def resolved(self, given: Given) -> Run:
        """Returns the run that flags, recipe, run file and defaults make, the first of them before the others."""
        from luthier.training.objective import completed

        return completed(self.stated(given))

    def stated(self, given: Given) -> dict[str, Any]:
        """Returns the fields of the run that flags, recipe and run file state, the first of them before the others."""
        from luthier.cli.chosen import choices
        from luthier.methods.choices import CHOICES
        from luthier.methods.recipe import form_named
        from luthier.training import Run, Training
        from luthier.training.from_adapter import extending, resolved
        from luthier.training.runfile import lasting

        start = given.get(Run, {}).get("from_adapter")
        if self.model is None and start is None:
            raise LuthierError(
                "train what? Name a MODEL and DATA, a run file, or a finished run to extend (--from); `luthier train "
                "--help` has examples."
            )
        file = _file(self.model, start)
        method, recipe = _chosen(self.method, self.recipe, file, start)
        told = {name: value for name, value in given.get(Run, {}).items() if name not in CHOICES}
        if file is not None:
            file.check_trust(bool(told.get("trust_remote_code")))
        fields = {**(file.fields if file else {"model": self.model}), **({"data": self.data} if self.data else {})}
        fields = extending(fields) if self.model is None else fields
        if "data" not in fields:
            raise LuthierError(f"{self.model} is to be fitted to data; name them behind it, or give a run file.")
        stated = recipe.training if recipe else {}
        training = Training.from_dict(lasting(stated, given.get(Training, {})))
        chosen = choices(form_named(method), given, recipe)
        chosen = extending(chosen) if self.model is None else chosen
        named = self.method is not None or self.recipe is not None or (self.model is not None and file and file.chosen)
        formed = named or bool(given.get(form_named(method))) or "where" in told_choices(given)
        return resolved({**fields, **told, **chosen, "training": training}, bool(formed))


def told_choices(given: Given) -> set[str]:
    """The names of the choices that flags state."""
    from luthier.methods.choices import CHOICES
    from luthier.training import Run

    return set(CHOICES) & set(given.get(Run, {}))


def _file(model: str | None, start: str | None) -> RunFile | None:
    """The run file that stands in place of a model, or that of the finished run that is gone on from."""
    from luthier.training.from_adapter import run_file_of
    from luthier.training.planfile import is_plan, read_plan
    from luthier.training.runfile import is_run_file, read_run_file

    if model is None:
        return read_run_file(run_file_of(start)) if start is not None else None
    if is_plan(model):
        return read_plan(model)[0]
    return read_run_file(model) if is_run_file(model) else None


def _chosen(
    method: str | None, recipe: str | None, file: RunFile | None, start: str | None = None
) -> tuple[str, Recipe | None]:
    """The method and the recipe under it: the one named, or what a run file says where it is of that method, or that
    of the adapter `start`.

    A recipe for another method than the one asked for is refused.
    """
    from luthier.methods.recipe import read_recipe, refuse_other
    from luthier.training.from_adapter import form_name
    from luthier.training.runfile import METHOD

    if recipe is None and file is None:
        return method or (form_name(start) if start else None) or METHOD, None
    if recipe is not None and file is not None:
        raise LuthierError(f"{file.path} is the run, and --recipe {recipe} another one; name the recipe in the file.")
    read = file.recipe if file else read_recipe(recipe or "")
    refuse_other(read, method)
    return read.method, read
