"""`luthier continue`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table, tell
from luthier.cli.parse import Flags, Given, Signed, option
from luthier.cli.stopped import sequence_stopped
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.methods.recipe import Recipe
    from luthier.training import Run
    from luthier.training.sequences import Continued, TaskSequence

METHOD = "lora"
OWN = ("form", "training", "model", "data", "eval_data", "out", "penalty", "calibration")
"""Fields of a run that are no flags: the command has its own for them."""


@dataclass(frozen=True)
class Continue(Signed):
    """Fine-tune a model on one task after another, and measure what it forgets.

    After every task the model is tested on all of them. The matrix "after task i, on task j", average accuracy,
    backward and forward transfer and forgetting go to the screen with intervals, and to matrix.json, result.json and
    matrix.png in --out. --by says how earlier tasks are kept: not at all (naive), by rows (replay, cumulative, joint),
    by a penalty (ewc, si, rwalk; --weight and more are its flags) or by projecting gradients (agem). Stopped, it goes
    on with --resume within or between tasks.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier continue minilm-l6 --tasks travel.jsonl banking.jsonl home.jsonl --by naive",
        "luthier continue minilm-l6 --tasks a.jsonl b.jsonl c.jsonl --by replay --memory 200 --out replayed",
        "luthier continue smollm2-135m --tasks a.jsonl b.jsonl --tests ta.jsonl tb.jsonl --by ewc --weight 1000",
        "luthier continue minilm-l6 --tasks a.jsonl b.jsonl --by agem --method loreft --epochs 2 --lr 1e-3",
        "luthier continue minilm-l6 --tasks a.jsonl b.jsonl --adapters each --json",
        "luthier continue minilm-l6 --tasks a.jsonl b.jsonl --by naive --out sequence --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    tasks: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """The rows of each task, in the order of training: files, folders, hub ids or gym:<task>."""
    tests: tuple[str, ...] = field(default=(), kw_only=True, metadata={"several": True})
    """Rows to test on, one source for each task. Default: a share of each task's rows (--eval-fraction)."""
    by: str = field(default="naive", kw_only=True)
    """How earlier tasks are kept: naive, replay, cumulative, joint, ewc, si, rwalk or agem."""
    adapters: str = field(default="one", kw_only=True)
    """What is trained: one adapter that goes on over all tasks, or each task its own."""
    memory: int | None = field(default=None, kw_only=True)
    """Rows of earlier tasks that replay and agem keep, drawn by reservoir sampling. Default: 200."""
    replay_share: float | None = field(default=None, kw_only=True)
    """Share of kept rows among those that replay trains on. Default: 0.5."""
    score: str | None = field(default=None, kw_only=True)
    """What the matrix holds: answers (scores) or loss (minus the loss of a row). Default: answers, where there are."""
    max_new_tokens: int = field(default=64, kw_only=True)
    """The most tokens of a generated answer."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: lora, or the recipe's."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file, under the flags."""
    out: str = field(default="sequence", kw_only=True)
    """The folder to write."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the sequence in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds a sequence."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.chosen import component_flags
        from luthier.core.contracts.component import find, names
        from luthier.training import Run, Training

        by, (method, recipe) = (
            option(tokens, "--by") or "naive",
            chosen(option(tokens, "--method"), option(tokens, "--recipe")),
        )
        form = find("forms", method)
        penalty = [find("penalties", by)] if by in names("penalties") else []
        return [
            Flags(Run, "Run", OWN),
            Flags(Training, "Training on each task", ("shard", "eval_every")),
            Flags(form, f"Settings of {form.name()}"),
            *(Flags(each, f"Settings of {each.name()}, for --by") for each in penalty),
            *component_flags(tokens, recipe, but=("penalty",)),
        ]

    def run(self, given: Given) -> None:
        from luthier.training.sequences import carry_out

        run, spec = self.resolved(given)
        done = carry_out(
            run, spec, answers=self._answers(run), resume=self.resume, overwrite=self.overwrite, progress=not self.json
        )
        self._say(done, spec)

    def resolved(self, given: Given) -> tuple[Run, TaskSequence]:
        """Returns what the flags ask for."""
        from luthier.cli.chosen import choices
        from luthier.core.contracts.component import find, names
        from luthier.core.contracts.form import Form
        from luthier.methods.choices import CHOICES
        from luthier.training import Run as Spec
        from luthier.training import Training
        from luthier.training.runfile import lasting
        from luthier.training.sequences import TaskSequence

        adapters: Any = self.adapters
        score: Any = self.score
        spec = TaskSequence(self.tasks, self.by, self.tests, adapters, self.memory, self.replay_share, score)
        penalty = [find("penalties", self.by)] if self.by in names("penalties") else []
        method, recipe = chosen(self.method, self.recipe)
        run = Spec(
            self.model,
            self.tasks[0],
            out=self.out,
            training=Training.from_dict(lasting(recipe.training if recipe else {}, given.get(Training, {}))),
            **choices(find("forms", method, Form), given, recipe, beside=penalty),
            **{name: value for name, value in given.get(Spec, {}).items() if name not in CHOICES},
        )
        return spec.applied(run, dict(given.get(penalty[0], {})) if penalty else {}), spec

    def _answers(self, run: Run) -> Any:
        """What scores the answers to test rows."""
        from luthier.evaluating import evaluate

        def scores(model: Any, processor: Any, examples: Any, task: str) -> list[float]:
            found = evaluate(
                model, processor, examples, batch=run.training.batch, task=task, progress=not self.json,
                max_new_tokens=self.max_new_tokens,
            )  # fmt: skip
            return [line["score"] for line in found.predictions]

        return scores

    def _say(self, done: Continued, spec: TaskSequence) -> None:
        from luthier.core.records import read_json

        if self.json:
            say_json(read_json(done.folder / "result.json"))
            return
        for columns, rows in tables(done):
            table(columns, rows)
            say()
        if not done.matrix.whole:
            tell("note", "joint training has no order of tasks, so transfer and forgetting are not defined.")
        told = ", ".join(f"{count:,} {name}" for name, count in done.kept.items() if count) or "nothing"
        say(f"Kept of earlier tasks beside the adapter: {told}.")
        say(f"{done.folder} holds the sequence; the adapter after the last task is {done.adapters[-1]}.")

    def stopped(self, given: Given) -> str:
        return sequence_stopped(self.out)


def chosen(method: str | None, name: str | None) -> tuple[str, Recipe | None]:
    """Returns the form and the recipe that flags name."""
    from luthier.methods.recipe import read_recipe

    recipe = read_recipe(name) if name else None
    if recipe is not None and method not in (None, recipe.method):
        raise LuthierError(f"recipe {name!r} is for {recipe.method}, not for {method}; leave one of the two out.")
    return method or (recipe.method if recipe else METHOD), recipe


def tables(done: Continued) -> list[tuple[Sequence[str], Sequence[Sequence[object]]]]:
    """Returns the matrix and the figures as (columns, rows)."""
    import numpy as np

    matrix, (low, high) = done.matrix, done.matrix.intervals()
    heads = ["before", *(f"after {name}" for name in matrix.names)]
    cells = [
        (head, *(f"{v:.3f} ±{(b - a) / 2:.3f}" for v, a, b in zip(row, low[i], high[i], strict=True)))
        for i, (head, row) in enumerate(zip(heads, matrix.means(), strict=True))
        if not np.isnan(row).all()
    ]
    figures = [(name, f"{f['value']:.3f}", f"{f['low']:.3f} to {f['high']:.3f}") for name, f in done.figures.items()]
    return [
        (("", *(f"on {name}" for name in matrix.names)), cells),
        (("", "value", "95% interval over test rows"), figures),
    ]
