"""`luthier meta`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.cli.stopped import meta_stopped
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.contracts.form import Form
    from luthier.core.contracts.meta import Meta
    from luthier.training.meta import MetaRun

BY = "fomaml"


@dataclass(frozen=True)
class MetaCommand(Fitted):
    """Train an adapter over several domains so that one or two demonstrations are enough to adapt it.

    In domains that it never saw (--tests) the loss is measured as it is, after the inner loop on the demonstrations,
    and with the demonstrations before the prompt: of the base, of joint training with as many steps, and of the
    meta-learner. Rows have a prompt and an answer; for chameleon an image and its mask, paths of files, and each file
    of rows is a kind of mask. Stopped, it goes on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl c.jsonl --tests d.jsonl --out learned",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --shots 2 --inner-lr 0.05 --inner-steps 2",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --method loreft --steps 200 --json",
        "luthier meta smollm2-135m --domains a.jsonl b.jsonl --tests c.jsonl --out learned --resume",
        "luthier meta sam2-hiera-tiny --by chameleon --domains cats.jsonl edges.jsonl --tests shadows.jsonl --shots 4",
    )

    model: str
    """A folder, a hub id, a .gguf file or a name of the catalogue (`luthier models`)."""
    domains: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """The rows of each domain that is learned: files, folders, hub ids or gym:<task>."""
    tests: tuple[str, ...] = field(kw_only=True, metadata={"several": True})
    """The rows of domains that are not learned."""
    by: str = field(default=BY, kw_only=True)
    """The meta-learner; `luthier list metas` shows all."""
    method: str | None = field(default=None, kw_only=True)
    """The form that is attached, with its own settings. Default: the recipe's, or that of the meta-learner (lora;
    bitfit for chameleon)."""
    recipe: str | None = field(default=None, kw_only=True)
    """Settings by name (`luthier list recipes`) or in a .toml file, under the flags: of the form, where it goes, and of
    training lr and steps."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the run in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find
        from luthier.core.contracts.meta import Meta
        from luthier.training.meta import MetaRun

        meta = find("metas", option(tokens, "--by") or BY, Meta)
        form = chosen_form(meta, option(tokens, "--method"), option(tokens, "--recipe"))
        own = ("model", "domains", "tests", "meta", "form")
        return [
            Flags(meta, f"Settings of {meta.name()}"),
            Flags(form, f"Settings of {form.name()}"),
            Flags(MetaRun, "Meta-training", own),
        ]

    def run(self, given: Given) -> None:
        from luthier.training.meta import meta_learn

        done = meta_learn(self.resolved(given), resume=self.resume, overwrite=self.overwrite, progress=not self.json)
        if self.json:
            where = {"folder": str(done.folder), "adapter": str(done.adapter)}
            say_json({**where, "figures": done.figures, "gains": done.gains})
            return
        rows = [(name, way, *told(each)) for name, ways in done.figures.items() for way, each in ways.items()]
        table(("model", "", "loss in new domains", "95% interval over episodes", "IoU", "")[: len(rows[0])], rows)
        for way, each in done.gains.items():
            span = f"{each['low']:.4f} to {each['high']:.4f}"
            say(f"{way}: {self.by} is {each['loss']:.4f} ({span}) below joint training in the same episodes")
        say(f"\n{done.adapter} holds the adapter.")

    def resolved(self, given: Given) -> MetaRun:
        """Returns what the flags ask for."""
        from luthier.core.contracts.component import find
        from luthier.core.contracts.meta import Meta
        from luthier.training.meta import MetaRun

        meta = find("metas", self.by, Meta)
        form = chosen_form(meta, self.method, self.recipe)
        under, settings = from_recipe(self.recipe)
        made = meta.from_dict(dict(given.get(meta, {}))), form.from_dict({**settings, **given.get(form, {})})
        return MetaRun(self.model, self.domains, self.tests, *made, **{**under, **given.get(MetaRun, {})})

    def stopped(self, given: Given) -> str:
        from luthier.training.meta import MetaRun

        return meta_stopped(given.get(MetaRun, {}).get("out", MetaRun.out))


OF_RECIPES = ("lr", "steps")
"""What a recipe's training may set."""


def told(figures: dict[str, float]) -> tuple[str, ...]:
    """The loss with its interval, and where masks are learned the intersection over union with its own."""
    names = [("loss", "low", "high"), ("iou", "iou_low", "iou_high")][: 1 + ("iou" in figures)]
    held = [[f"{figures[name]:.4f}" for name in three] for three in names]
    return tuple(cell for mean, low, high in held for cell in (mean, f"{low} to {high}"))


def chosen_form(meta: type[Meta], method: str | None, recipe: str | None) -> type[Form]:
    """The form that is named, or the recipe's, or the meta-learner's; raises for a recipe of another one."""
    from luthier.core.contracts.component import find
    from luthier.core.contracts.form import Form
    from luthier.methods.recipe import read_recipe, refuse_other

    if recipe is None:
        return find("forms", method or meta.form, Form)
    refuse_other(read := read_recipe(recipe), method)
    return find("forms", read.method, Form)


def from_recipe(name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (fields of a meta-training, settings of the form) of a recipe; raises for what would be ignored."""
    from luthier.methods.choices import CHOICES
    from luthier.methods.recipe import read_recipe

    if name is None:
        return {}, {}
    recipe = read_recipe(name)
    idle = [key for key in CHOICES if key not in ("form", "where") and getattr(recipe, key)]
    idle += [f"training.{key}" for key in recipe.training if key not in OF_RECIPES]
    if idle:
        raise LuthierError(
            f"recipe {name} sets {', '.join(idle)}, which a meta-training would ignore; it takes a form, where it "
            f"goes, and {', '.join(OF_RECIPES)}."
        )
    where: dict[str, Any] = {"where": recipe.where} if recipe.where else {}
    return {**where, **recipe.training}, dict(recipe.form)
