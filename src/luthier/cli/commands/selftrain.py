"""`luthier selftrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.stopped import self_training_stopped
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.methods.recipe import Recipe
    from luthier.training.self_training import SelfTraining

OWN = ("model", "labelled", "unlabelled", "form", "test", "words")
OF_RECIPES = ("lr", "batch", "max_length")
"""Settings of training that a self-training has too."""


@dataclass(frozen=True)
class Selftrain(Fitted):
    """Train on few rows with a class and many without: a teacher labels these, and a student learns those that help.

    The model says a class with its next token after a prompt (--template, --words). A student starts anew and learns
    the teacher's probabilities; each row of a batch is weighed by how far a step on it would lower the loss of rows
    with a class. Accuracy on --test stands beside that of the teacher. Stopped, it goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier selftrain smollm2-135m --labelled few.jsonl --unlabelled many.jsonl --test test.jsonl --recipe list",
        "luthier selftrain smollm2-135m --labelled few.jsonl --unlabelled many.jsonl "
        "--words 'positive= great' 'negative= terrible' --template '{text} It was'",
        "luthier selftrain smollm2-135m --labelled few.jsonl --unlabelled many.jsonl --no-reweigh --rounds 1 --json",
        "luthier selftrain smollm2-135m --labelled few.jsonl --unlabelled many.jsonl --out selftrain --resume",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    labelled: str = field(kw_only=True)
    """The rows with a class (text, label): a file, a folder or a hub id."""
    unlabelled: str = field(kw_only=True)
    """The rows without (text)."""
    test: str | None = field(default=None, kw_only=True)
    """Rows with a class to test on."""
    words: tuple[str, ...] = field(default=(), kw_only=True, metadata={"several": True})
    """What the model says for each class, such as 'positive= great', the space included. Default: a space and the
    class."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: lora, or the recipe's."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file, under the flags: of the form, and of training lr,
    batch and max_length."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the run in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.commands.continue_ import chosen
        from luthier.core.contracts.component import find
        from luthier.training.self_training import SelfTraining

        form = find("forms", chosen(option(tokens, "--method"), option(tokens, "--recipe"))[0])
        return [Flags(form, f"Settings of {form.name()}"), Flags(SelfTraining, "Self-training", OWN)]

    def run(self, given: Given) -> None:
        from luthier.training.self_training import self_train

        done = self_train(self.resolved(given), resume=self.resume, overwrite=self.overwrite, progress=not self.json)
        if self.json:
            say_json({"folder": str(done.folder), "adapter": str(done.adapter), "figures": done.figures,
                      "weights": done.weights})  # fmt: skip
            return
        if done.figures:
            rows = [(name, f"{each['accuracy']:.1%}", f"{each['low']:.1%} to {each['high']:.1%}")
                    for name, each in done.figures.items()]  # fmt: skip
            table(("after", "accuracy", "95% interval over rows"), rows)
        for name, each in done.weights.items():
            say(f"{name}: {each['with weight']:.1%} of {each['rows']:,} rows had a weight")
        say(f"\n{done.adapter} holds the adapter.")

    def resolved(self, given: Given) -> SelfTraining:
        """Returns what the flags ask for."""
        from luthier.cli.commands.continue_ import chosen
        from luthier.core.contracts.component import find
        from luthier.core.contracts.form import Form
        from luthier.training.self_training import SelfTraining

        method, recipe = chosen(self.method, self.recipe)
        cls = find("forms", method, Form)
        under = from_recipe(recipe) if recipe else {}
        form = cls.from_dict({**(recipe.form if recipe else {}), **given.get(cls, {})})
        fields = {**under, **given.get(SelfTraining, {})}
        return SelfTraining(self.model, self.labelled, self.unlabelled, form, self.test, words=self.words, **fields)

    def stopped(self, given: Given) -> str:
        from luthier.training.self_training import SelfTraining

        return self_training_stopped(given.get(SelfTraining, {}).get("out", SelfTraining.out))


def from_recipe(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields that a recipe gives; raises for those that a self-training would ignore."""
    from luthier.methods.recipe import TABLES

    told = {key: getattr(recipe, key) for key in TABLES if key not in ("form", "training")}
    idle = [key for key, value in told.items() if value]
    idle += [f"training.{key}" for key in recipe.training if key not in OF_RECIPES]
    idle += ["budget"] if getattr(recipe, "budget", None) is not None else []
    if idle:
        raise LuthierError(
            f"recipe {recipe.name} sets {', '.join(idle)}, which a self-training would ignore; it takes a form, where "
            f"it goes, and {', '.join(OF_RECIPES)}."
        )
    where: dict[str, Any] = {"where": recipe.where} if recipe.where else {}
    return {**where, **recipe.training}
