"""The origin of a recipe's settings: its source, our own choice, or Luthier's defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from luthier.core.contracts.component import Component, find
from luthier.core.contracts.statistic import Statistic
from luthier.methods.choices import CHOICES, COMPONENTS
from luthier.methods.recipe import Recipe

TRAINING = ("lr", "epochs", "steps", "batch", "accumulate", "schedule", "warmup", "weight_decay", "clip", "max_length")
"""What every training has: a recipe tells each of them, and whose it is."""
LOOKS = ("samples", "batch", "tokens")
"""What every look at the data has."""


@dataclass(frozen=True)
class Stated:
    """A setting of a recipe."""

    key: str
    """`table.name`."""
    value: Any
    whose: str
    """Whose value it is: source, ours, recipe (no source is named), or default (neither stated nor declared)."""


def stated(recipe: Recipe) -> list[Stated]:
    """Every setting that a run by the recipe has of its components and tables, in the order of the tables."""
    found = [Stated("where", recipe.where or "the form's own", _whose(recipe, "where", recipe.where is not None))]
    for table, cls, given in _tables(recipe):
        known = {key: _default(each) for key, (_, each) in cls.settings().items() if not each.kw_only or key in given}
        found += _rows(recipe, table, given, known)
    training = {key: value for key, value in _defaults("training").items() if key in TRAINING}
    if "steps" in recipe.training or "epochs" in recipe.training:
        training.pop("epochs" if "steps" in recipe.training else "steps")
    elif "training.steps" not in recipe.ours:
        training.pop("steps")
    if recipe.calibration or any(looks_at_data(recipe)):
        looks = {key: value for key, value in _defaults("calibration").items() if key in LOOKS}
        found += _rows(recipe, "calibration", recipe.calibration, looks)
    return found + _rows(recipe, "training", recipe.training, training)


def looks_at_data(recipe: Recipe) -> Iterator[Statistic]:
    """Yields what a run by the recipe measures before it starts."""
    form: Any = find("forms", recipe.method).from_dict(recipe.form)
    for table, axis in COMPONENTS.items():
        given = dict(getattr(recipe, table))
        if given and CHOICES[table].measures:
            part: Any = find(axis, given.pop("name")).from_dict(given)
            yield from part.statistics(form)


def _tables(recipe: Recipe) -> Iterator[tuple[str, type[Component], dict[str, Any]]]:
    """(table, component, settings) of all that the recipe composes."""
    for table, axis in {"form": "forms", **COMPONENTS}.items():
        given = dict(getattr(recipe, table))
        name = recipe.method if table == "form" else given.pop("name", None)
        if name is not None:
            yield table, find(axis, name), given
    for number, targeted in enumerate(recipe.also):
        yield f"also.{number}", find("forms", targeted["method"]), dict(targeted.get("form", {}))


def _rows(recipe: Recipe, table: str, given: dict[str, Any], known: dict[str, Any]) -> list[Stated]:
    rows = {**known, **given}
    return [
        Stated(f"{table}.{key}", value, _whose(recipe, f"{table}.{key}", key in given)) for key, value in rows.items()
    ]


def _whose(recipe: Recipe, key: str, told: bool) -> str:
    if key in recipe.ours:
        return "ours"
    if not told:
        return "default"
    return "source" if recipe.source else "recipe"


def _default(field: Any) -> Any:
    return None if field.default is MISSING else field.default


def _defaults(table: str) -> dict[str, Any]:
    from luthier.core.contracts.calibration import Calibration
    from luthier.training.spec import Training

    return (Training if table == "training" else Calibration)().to_dict()


def summary(recipe: Recipe) -> list[str]:
    """Returns what a run by the recipe takes from where, in few lines."""
    rows = stated(recipe)
    lines = [f"recipe {recipe.name}: {recipe.source or 'no source is named'}"]
    for whose, words in (("ours", "ours, not the source's"), ("default", "not in the recipe: Luthier's defaults")):
        named = [f"{row.key}={_plain(row.value)}" for row in rows if row.whose == whose and row.value is not None]
        lines += [f"  {words}: {', '.join(named)}"] if named else []
    return lines


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
