"""`luthier train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Command, Flags, Given, option
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.methods.recipe import Recipe
    from luthier.training import Run

METHOD = "wegeft"
"""What is used by default."""
OWN = ("form", "objective", "training", "model", "data", "ranks", "init", "calibration", "update", "also", "select")
"""Fields of a run that are no flags: the command has its own for them."""

MEASURED = {"ranks": "ranks", "init": "inits"}
"""Flags that name a component which looks at the data first, with its axis."""
CHOSEN = {**MEASURED, "update": "updates", "objective": "objectives", "select": "selections"}
"""These, and other flags whose component a recipe may name too."""


@dataclass(frozen=True)
class Train(Command):
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
        "luthier train smollm2-135m pool.jsonl --select got_d --select-rows 2000 --target task.jsonl",
        "luthier train smollm2-135m train.jsonl --method lora --dry-run",
        "luthier train smollm2-135m train.jsonl --out run --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    data: str
    """A file (.jsonl, .csv, .parquet, …), a folder, a hub id or gym:<task>."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: wegeft; `luthier list forms` shows all. A recipe of
    the same name is taken by --recipe alone."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file."""
    ranks: str | None = field(default=None, kw_only=True)
    """The allocation of ranks from the data. Default: --rank everywhere; `luthier list ranks` shows all."""
    init: str | None = field(default=None, kw_only=True)
    """The initialisation of the method. Default: its own; `luthier list inits` shows all."""
    update: str | None = field(default=None, kw_only=True)
    """The change of AdamW's update, and of what is trained. Default: AdamW; `luthier list updates` shows all."""
    also: str | None = field(default=None, kw_only=True)
    """Further forms of the same adapter: [{method = "bottleneck", where = "output(mlp)", form = {dim = 512}}]."""
    objective: str | None = field(default=None, kw_only=True)
    """The training loss. Default: sft; `luthier list objectives` shows all."""
    select: str | None = field(default=None, kw_only=True)
    """The selection of --select-rows rows to train on. Default: all rows; `luthier list selections` shows all."""
    resume: bool = field(default=False, kw_only=True)
    """Resume from the last checkpoint in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds a run."""
    dry_run: bool = field(default=False, kw_only=True)
    """Stop before training: show the sites, the parameters, and the tokens of the first row."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.measuring.calibration import Calibration
        from luthier.methods.recipe import form_named
        from luthier.training import Run, Training

        flags = [Flags(Run, "Run", OWN), Flags(Training, "Training")]
        method, recipe = _chosen(option(tokens, "--method"), option(tokens, "--recipe"))
        if method is not None:
            flags.append(Flags(form_named(method), f"Settings of {method}"))
        chosen = {flag: _component(flag, option(tokens, f"--{flag}"), recipe)[0] for flag in CHOSEN}
        flags += [Flags(each, f"Settings of {each.name()}, for --{flag}") for flag, each in chosen.items() if each]
        return [*flags, Flags(Calibration, "Calibration")] if any(chosen[flag] for flag in MEASURED) else flags

    def run(self, given: Given) -> None:
        from luthier.cli.base import next_step
        from luthier.training import train
        from luthier.training.folder import read_record
        from luthier.training.prepare import is_main

        run = self.resolved(given)
        if self.dry_run:
            from luthier.cli.dry_run import dry_run

            dry_run(run, self.taken())
            return
        result = train(run, resume=self.resume, overwrite=self.overwrite, notes=self.taken())
        if not is_main():
            return
        share = result.trainable / result.total
        say(f"{result.folder} holds the run, {result.adapter} the adapter ({result.trainable:,} numbers, {share:.3%}).")
        plain = read_record(result.folder).get("layout") == "text"  # which has no answers to score
        say(next_step(self.model, None if plain else run.eval_data or self.data, result.folder))

    def taken(self) -> list[str]:
        """Where the settings come from that no flag sets: the recipe, or the method's own defaults."""
        from luthier.cli.whose import summary
        from luthier.methods.recipe import recipe_files

        method, recipe = _chosen(self.method, self.recipe)
        if recipe is not None:
            return summary(recipe)
        named = f"; --recipe {method} has those of its source" if method in recipe_files() else ""
        return [f"no recipe: what no flag sets is {method}'s own default and that of training{named}"]

    def resolved(self, given: Given) -> Run:
        """The run that flags, recipe and defaults make, the first of them before the others."""
        from luthier.measuring.calibration import Calibration
        from luthier.methods.recipe import form_named
        from luthier.methods.targeted_form import TargetedForm, read_targeted_forms
        from luthier.training import Run, Training

        method, recipe = _chosen(self.method, self.recipe)
        form = form_named(method or METHOD)
        told: dict[str, Any] = {"where": recipe.where, "budget": recipe.budget} if recipe else {}
        further = tuple(map(TargetedForm.from_dict, recipe.also)) if recipe else ()
        told["also"] = read_targeted_forms(self.also) if self.also else further
        told |= given.get(Run, {})
        for flag in CHOSEN:
            cls, under = _component(flag, getattr(self, flag), recipe)
            told |= {} if cls is None else {flag: _made(cls, under, given)}
        return Run(
            model=self.model,
            data=self.data,
            form=_made(form, recipe.form if recipe else {}, given),
            calibration=Calibration(**{**(recipe.calibration if recipe else {}), **given.get(Calibration, {})}),
            training=_made(Training, _lasting(recipe, given.get(Training, {})), given),
            **told,
        )


def _chosen(method: str | None, recipe: str | None) -> tuple[str, Recipe | None]:
    """The method and the recipe under it. A recipe for another method than the one asked for is refused."""
    if recipe is None:
        return method or METHOD, None
    from luthier.core.contracts.component import find
    from luthier.methods.recipe import read_recipe

    read = read_recipe(recipe)
    if method is not None and find("forms", method) is not find("forms", read.method):
        raise LuthierError(f"recipe {read.name!r} is for {read.method}, not for {method}; leave one of the two out.")
    return read.method, read


def _component(flag: str, name: str | None, recipe: Recipe | None) -> tuple[Any, dict[str, Any]]:
    """The component that a flag or else the recipe names, and the recipe's settings if they are of that one."""
    from luthier.core.contracts.component import find

    under = dict(getattr(recipe, flag)) if recipe else {}
    stated = under.pop("name", None)
    if name is None and stated is None:
        return None, {}
    found = find(CHOSEN[flag], name or stated)
    return found, under if stated and find(CHOSEN[flag], stated) is found else {}


def _lasting(recipe: Recipe | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings of training; its steps give way where the user says how many epochs."""
    stated = dict(recipe.training) if recipe else {}
    if "epochs" in given and "steps" not in given:
        stated.pop("steps", None)
    return stated


def _made(cls: Any, recipe: dict[str, Any], given: Given) -> Any:
    """Defaults under the recipe under the flags."""
    return cls.from_dict({**recipe, **given.get(cls, {})})
