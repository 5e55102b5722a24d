"""The choices of a run as flags tell them: components by name with their settings, over those of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from luthier.cli.parse import Flags, Given, option
from luthier.core.errors import LuthierError
from luthier.methods.choices import CHOICES, COMPONENTS, made, usual, written

if TYPE_CHECKING:
    from luthier.core.contracts.component import Component
    from luthier.core.contracts.form import Form
    from luthier.methods.recipe import Recipe

NONE = "none"
"""What flags call no component where a recipe has one."""


def component_flags(tokens: Sequence[str], recipe: Recipe | None = None, but: Collection[str] = ()) -> list[Flags]:
    """The settings of the components that flags or the recipe name, and of the calibration where one needs it."""
    from luthier.core.contracts.calibration import Calibration

    given = {name: option(tokens, f"--{name}") for name in COMPONENTS if name not in but}
    found = {name: _component(name, value, recipe)[0] for name, value in given.items()}
    flags = [Flags(cls, f"Settings of {cls.name()}, for --{name}") for name, cls in found.items() if cls is not None]
    measures = any(cls is not None and CHOICES[name].measures for name, cls in found.items())
    return [*flags, Flags(Calibration, "Calibration")] if measures else flags


def choices(
    form: type[Form], given: Given, recipe: Recipe | None = None, beside: Collection[type] = ()
) -> dict[str, Any]:
    """Arguments of a `Choices`: defaults under the recipe under the flags. Components `beside` are the caller's."""
    from luthier.core.contracts.calibration import Calibration
    from luthier.methods.targeted_form import read_targeted_forms
    from luthier.training import Run

    under, told = written(recipe) if recipe else {}, given.get(Run, {})
    found = {name: value for name, value in {**under, **told}.items() if name in CHOICES and name not in COMPONENTS}
    used = []
    for name in COMPONENTS:
        cls, settings = _component(name, (told[name] or NONE) if name in told else None, recipe)
        used.append(cls)
        if cls is not None:
            found[name] = {"name": cls.name(), **settings, **given.get(cls, {})}
    if told.get("also"):
        found["also"] = [piece.to_dict() for piece in read_targeted_forms(told["also"])]
    _refuse_unused(given, (form, *used, *beside))
    found["calibration"] = {**under.get("calibration", {}), **given.get(Calibration, {})}
    return made(form, {**found, "form": {**under.get("form", {}), **given.get(form, {})}})


def _refuse_unused(given: Given, used: Collection[type | None]) -> None:
    """Raises for settings of a component that is none of the run's, as where a run file does not come first."""
    from luthier.core.contracts.component import Component

    for cls, settings in given.items():
        if issubclass(cls, Component) and cls not in used:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in settings)
            raise LuthierError(
                f"{flags}: settings of {cls.name()}, which is not part of this run; a run file comes first."
            )


def _component(name: str, flag: str | None, recipe: Recipe | None) -> tuple[type[Component] | None, dict[str, Any]]:
    """The component that a flag or else the recipe names, and the recipe's settings if they are of that one."""
    from luthier.core.contracts.component import find

    settings = dict(getattr(recipe, name)) if recipe else {}
    stated = settings.pop("name", None)
    wanted = flag or stated
    if wanted is None or (wanted == NONE and usual(name) is None):
        return None, {}
    found = find(COMPONENTS[name], wanted)
    return found, settings if stated and find(COMPONENTS[name], stated) is found else {}
