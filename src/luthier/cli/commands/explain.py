"""`luthier explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Flags, Given, Reading
from luthier.core.contracts.component import Component
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.methods.recipe import Recipe


@dataclass(frozen=True)
class Explain(Reading):
    """Explain a method: its equation, source, settings and, on a model, its exact number of parameters.

    The settings of the method are flags as well, and change the count. Only the model's configuration is read,
    so a model of any size costs nothing. Of a recipe, every setting is shown with whose it is: its source's, or ours.
    A name that is both a method's and a recipe's means the method; recipe:lora is the recipe.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier explain wegeft",
        'luthier explain wegeft --model smollm2-135m --rank 64 --share type --where "q_proj, v_proj"',
        "luthier explain loreft --model path/to/config.json --json",
        "luthier explain wegeft-math",
    )

    method: str
    """The component, such as lora, or a recipe; `luthier list` shows all."""
    model: str | None = field(default=None, kw_only=True)
    """Count the parameters on this model: a folder, a config.json, a hub id or a name of the catalogue."""
    where: str | None = field(default=None, kw_only=True)
    """The sites to count parameters for. Default: the method's own."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.cli.describe import locate

        name = next((token for token in tokens if _is_known(token)), None)
        found = [] if name is None else locate(name)
        return [Flags(cls, f"Settings of {name}" + (f" ({axis})" if found[1:] else "")) for axis, cls in found]

    def run(self, given: Given) -> None:
        from luthier.cli.describe import locate
        from luthier.methods.recipe import recipe_files

        recipe = _recipe_of(self.method)
        if recipe is not None:
            self._explain(recipe)
            return
        shown = []
        for axis, cls in locate(self.method):
            component = cls.from_dict(dict(given.get(cls, {})))
            counted = self._count(component)
            shown.append(_as_json(axis, cls, component, counted))
            if not self.json:
                _print(axis, cls, component)
                if counted is not None:
                    _print_count(self.model or "", counted)
        if self.json:
            say_json(shown if shown[1:] else shown[0])
        elif self.method in recipe_files():
            say(f"\nA recipe has this name too: luthier explain recipe:{self.method}")

    def _explain(self, recipe: Recipe) -> None:
        """A recipe, with whose each of its settings is."""
        from luthier.cli.whose import stated
        from luthier.core.contracts.component import find

        rows, form = stated(recipe), find("forms", recipe.method)
        counted = self._count(form.from_dict(recipe.form), self.where or recipe.where)
        if self.json:
            named = {key: getattr(recipe, key) for key in ("name", "method", "description", "paper", "source", "where")}
            counts = {} if counted is None else {"count": counted}
            say_json(named | {"axis": "recipes", "settings": [asdict(row) for row in rows]} | counts)
            return
        say(f"{recipe.name} (recipe)\n\n  {recipe.description}\n")
        for name, text in (("paper", recipe.paper), ("source", recipe.source or "none is named")):
            say(f"  {name:<6}  {text}")
        say()
        table(("setting", "value", "whose"), [(row.key, _plain(row.value), WHOSE[row.whose]) for row in rows])
        if counted is not None:
            _print_count(self.model or "", counted)

    def _count(self, component: Component, where: str | None = None) -> dict[str, Any] | None:
        if self.model is None:
            return None
        from luthier.core.adapters.count import count
        from luthier.core.contracts.form import Form
        from luthier.models import config_of, meta_model

        if not isinstance(component, Form):
            raise LuthierError(f"{component.name()} is not a form: it has no parameters to count on a model.")
        return count(meta_model(config_of(self.model)), component, where or self.where)


WHOSE = {"source": "the source's", "ours": "ours", "recipe": "the recipe's", "default": "Luthier's default"}
"""What the last column says."""


def _recipe_of(name: str) -> Recipe | None:
    """The recipe that `name` means: one by prefix or file, or one that shares its name with no component."""
    from luthier.methods.recipe import read_recipe, recipe_files

    prefix, colon, rest = name.partition(":")
    if colon and prefix == "recipe":
        return read_recipe(rest)
    return read_recipe(name) if name.endswith(".toml") or (name in recipe_files() and not _is_known(name)) else None


def _is_known(token: str) -> bool:
    from luthier.cli.source import axes
    from luthier.core.contracts.component import names

    wanted = token.lower().replace("-", "").replace("_", "")
    return any(wanted == each.replace("_", "") for axis in axes() for each in names(axis))


def _as_json(axis: str, cls: type[Component], component: Component, counted: Any) -> dict[str, Any]:
    from luthier.cli.describe import body, facts, settings_of

    settings = [asdict(each) | {"value": getattr(component, each.name)} for each in settings_of(cls)]
    found = {"name": cls.name(), "axis": axis, "equation": cls.equation(), **facts(cls), "text": body(cls)}
    return found | {"settings": settings} | ({} if counted is None else {"count": counted})


def _print(axis: str, cls: type[Component], component: Component) -> None:
    from luthier.cli.describe import body, facts, settings_of

    say(f"{cls.name()} ({axis})\n\n  {cls.equation()}\n\n{body(cls)}\n")
    known = facts(cls)
    for name, text in known.items():
        say(f"  {name:<{max(map(len, known))}}  {text}")
    say()
    rows = [
        (f"--{each.name.replace('_', '-')}", each.type, _plain(getattr(component, each.name)), each.doc)
        for each in settings_of(cls)
    ]
    if rows:
        table(("setting", "type", "value", "meaning"), rows)


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def _print_count(model: str, counted: dict[str, Any]) -> None:
    say()
    columns = ("type", "kind", "d_in", "d_out", "sites", "parameters")
    table(columns, [[row[key] for key in columns] for row in counted["rows"]], f"on {model}")
    say(
        f"\n{counted['trainable']:,} trainable parameters at {counted['sites']:,} sites: "
        f"{counted['share']:.4%} of {counted['total']:,}"
    )
