"""`luthier metatune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Flags, Given, Signed, option
from luthier.cli.stopped import metatune_stopped

if TYPE_CHECKING:
    from luthier.training import Run

OWN = ("form", "training", "model", "data", "eval_data", "out", "task", "limit", "from_adapter")
"""Fields of a run that are no flags: the command has its own for them, or trains on all of the rows."""


@dataclass(frozen=True)
class Metatune(Signed):
    """Train on yes/no questions about some groups of data sets, and test on a group that was left out, each in turn.

    The sets are files of questions (luthier rewrite none DATA --by yes_no), which bear their group. A data set, a text
    or a description that two groups share is refused. Beside it stand the untuned model and as many steps on one set.
    The area under the ROC curve goes to the screen by group, and to left_out.json in --out by description. Stopped, it
    goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier metatune smollm2-135m --sets reviews.jsonl news.jsonl spam.jsonl --out meta",
        "luthier metatune minilm-l6 --sets reviews.jsonl news.jsonl spam.jsonl --lr 1e-3 --epochs 2 --batch 16",
        "luthier metatune smollm2-135m --sets reviews.jsonl news.jsonl --recipe metatune --single news.jsonl --json",
        "luthier metatune smollm2-135m --sets reviews.jsonl news.jsonl spam.jsonl --out meta --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    sets: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """Files of yes/no questions, at least two groups of them."""
    single: str | None = field(default=None, kw_only=True)
    """The one set that is trained on alone, for comparison. Default: the largest of the other groups."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: lora, or the recipe's."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file, under the flags."""
    out: str = field(default="metatune", kw_only=True)
    """The folder to write."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the meta-tuning in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.chosen import component_flags
        from luthier.cli.commands.continue_ import chosen
        from luthier.core.contracts.component import find
        from luthier.training import Run, Training

        method, recipe = chosen(option(tokens, "--method"), option(tokens, "--recipe"))
        form = find("forms", method)
        return [
            Flags(Run, "Run", OWN),
            Flags(Training, "Training", ("shard",)),
            Flags(form, f"Settings of {form.name()}"),
            *component_flags(tokens, recipe),
        ]

    def run(self, given: Given) -> None:
        from luthier.comparing.left_out import leave_out
        from luthier.core.records import read_json

        done = leave_out(
            self.resolved(given), self.sets, single=self.single, resume=self.resume, overwrite=self.overwrite,
            progress=not self.json,
        )  # fmt: skip
        if self.json:
            say_json(read_json(done.folder / "left_out.json"))
            return
        rows = [
            (group, way, f"{each['auc']:.4f}", f"{each['low']:.4f} to {each['high']:.4f}", each["descriptions"])
            for group, ways in done.figures.items()
            for way, each in ways.items()
        ]
        table(("left out", "trained on", "AUC-ROC", "95% interval over descriptions", "descriptions"), rows)
        say(f"\n{done.folder / 'left_out.json'} holds the figures of each description.")

    def resolved(self, given: Given) -> Run:
        """Returns what the flags ask for."""
        from luthier.cli.chosen import choices
        from luthier.cli.commands.continue_ import chosen
        from luthier.core.contracts.component import find
        from luthier.core.contracts.form import Form
        from luthier.methods.choices import CHOICES
        from luthier.training import Run as Spec
        from luthier.training import Training
        from luthier.training.runfile import lasting

        method, recipe = chosen(self.method, self.recipe)
        return Spec(
            self.model,
            self.sets[0],
            out=self.out,
            training=Training.from_dict(lasting(recipe.training if recipe else {}, given.get(Training, {}))),
            **choices(find("forms", method, Form), given, recipe),
            **{name: value for name, value in given.get(Spec, {}).items() if name not in CHOICES},
        )

    def stopped(self, given: Given) -> str:
        return metatune_stopped(self.out)
