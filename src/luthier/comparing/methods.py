"""Methods by name: what each attaches, and how it is trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.comparing.study import Settings
from luthier.core.contracts.component import Component, find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.init import Init
from luthier.core.contracts.objective import Objective
from luthier.core.contracts.ranks import Ranks
from luthier.core.contracts.selection import Selection
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError, near
from luthier.measuring.calibration import Calibration
from luthier.methods.forms.full import Full
from luthier.methods.objectives.sft import SFT
from luthier.methods.recipe import Recipe, read_recipe, recipe_files
from luthier.methods.targeted_form import TargetedForm
from luthier.methods.updates.adamw import AdamW
from luthier.training.spec import Training

OWN = ("lr", "schedule", "warmup", "weight_decay", "clip")
"""Settings of training that are a method's own. How much it sees (steps, batch, lengths) is the study's to say."""
PEFT = {"lora": False, "dora": True}
"""Competitors of peft, with `LoraConfig.use_dora`."""


@dataclass(frozen=True)
class Method:
    """One competitor, before it meets a model."""

    name: str
    kind: str
    """Who fits it, a key of `luthier.comparing.fit.KINDS`."""
    form: Form
    where: str | None = None
    usual: bool = False
    """`where` is a recipe's habit, which gives way on a model that has no such sites."""
    ranks: Ranks | None = None
    init: Init | None = None
    update: Update = field(default_factory=AdamW)
    also: tuple[TargetedForm, ...] = ()
    objective: Objective = field(default_factory=SFT)
    select: Selection | None = None
    select_rows: int | None = None
    target: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    budget: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """Settings of training under the study's: a recipe's."""
    over: dict[str, Any] = field(default_factory=dict)
    """Settings of training over the study's: what it says of this method."""
    notes: tuple[str, ...] = ()


def resolve(name: str, settings: Settings, budget: str | None) -> Method:
    """The method `name` with a study's settings and budget; raises `LuthierError` for what is none."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix not in KINDS:
        raise LuthierError(f"no method {name!r}: {prefix}: is none of {', '.join(f'{k}:' for k in KINDS if k)}.")
    found = KINDS[prefix if colon else ""](rest if colon else name)
    return dataclasses.replace(_budgeted(_settled(found, settings), settings.budget or budget), name=name)


def described(method: Method) -> dict[str, Any]:
    """Everything that a method's runs follow from, as JSON holds it."""
    found = {f.name: _plain(getattr(method, f.name)) for f in dataclasses.fields(method) if f.name != "notes"}
    return json.loads(json.dumps(found))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Component):
        return {"name": value.name(), "settings": value.to_dict()}
    return value.to_dict() if isinstance(value, TargetedForm | Calibration) else value


def _any(name: str) -> Method:
    """`base`, else a form, else a recipe: a name that is both means the form, as it does for `--method`."""
    if name == "base":
        notes = ("exempt from the budget: nothing but a new head is trained",)
        return Method(name, "base", Full(), training={"lr": Form.lr}, notes=notes)
    forms = {each.replace("_", "") for each in names("forms")}
    if name.lower().replace("_", "").replace("-", "") in forms:
        return _form(name)
    if name in recipe_files() or name.endswith(".toml"):
        return _recipe(name)
    known = sorted({*forms, *recipe_files(), "base", *(f"peft:{each}" for each in PEFT)})
    raise LuthierError(f"no method {name!r}{near(name, known)} There are: {', '.join(known)}.")


def _form(name: str) -> Method:
    form: Any = find("forms", name)
    notes = (f"the form's own settings, not those of recipe:{name}",) if name in recipe_files() else ()
    return Method(name, "luthier", form(), notes=notes)


def _recipe(name: str) -> Method:
    recipe = read_recipe(name)
    form: Any = find("forms", recipe.method)
    return Method(
        name=Path(name).stem,
        kind="luthier",
        form=form.from_dict(recipe.form),
        where=recipe.where,
        usual=recipe.where is not None,
        ranks=_component(recipe, "ranks"),
        init=_component(recipe, "init"),
        update=_component(recipe, "update") or AdamW(),
        also=tuple(map(TargetedForm.from_dict, recipe.also)),
        objective=_component(recipe, "objective") or SFT(),
        select=_component(recipe, "select"),
        calibration=Calibration(**recipe.calibration),
        budget=recipe.budget,
        training={key: value for key, value in recipe.training.items() if key in OWN},
        notes=(f"settings of the recipe {recipe.name}",),
    )


def _peft(name: str) -> Method:
    """peft's own model, at the sites, rank and scale that Luthier's method of the same name has."""
    prefix, colon, rest = name.partition(":")
    known = [*PEFT, *(f"recipe:{each}" for each in PEFT)]
    counterpart = _recipe(rest) if colon and prefix == "recipe" else _form(name) if name in PEFT else None
    if counterpart is None or counterpart.form.name() not in PEFT:
        raise LuthierError(
            f"no method 'peft:{name}'{near(name, known)} There are: {', '.join(f'peft:{k}' for k in known)}."
        )
    if importlib.util.find_spec("peft") is None:
        raise LuthierError(f"peft:{name} needs peft: pip install peft.")
    return dataclasses.replace(
        counterpart, kind="peft", notes=(*counterpart.notes, f"peft's own model, set up as {name} is here")
    )


KINDS = {"": _any, "form": _form, "recipe": _recipe, "peft": _peft}
"""What a prefix asks for."""


def _component(recipe: Recipe, key: str) -> Any:
    values = dict(getattr(recipe, key))
    return find(AXES[key], values.pop("name")).from_dict(values) if values else None


AXES = {"ranks": "ranks", "init": "inits", "update": "updates", "objective": "objectives", "select": "selections"}


def _settled(method: Method, settings: Settings) -> Method:
    """The method under what the study says of it."""
    changes: dict[str, Any] = {}
    if settings.where is not None:
        changes |= {"where": settings.where, "usual": False}
    if settings.form:
        changes["form"] = type(method.form).from_dict(method.form.to_dict() | settings.form)
    for key in AXES:
        values = dict(getattr(settings, key))
        if values:
            changes[key] = find(AXES[key], str(values.pop("name", ""))).from_dict(values)
    for key in ("select_rows", "target"):
        if getattr(settings, key) is not None:
            changes[key] = getattr(settings, key)
    if settings.calibration:
        changes["calibration"] = Calibration(**settings.calibration)
    Training.from_dict(settings.training)
    settled = dataclasses.replace(method, **changes, over=settings.training)
    if settled.select is not None and settled.select_rows is None:
        raise LuthierError(
            f"{method.name} learns from rows that {settled.select.name()} chooses, and nothing says how many; say so "
            "in the study's file: select_rows, and target for what they are chosen for, under its [settings]."
        )
    if method.kind == "peft":
        _refuse_ignored(settled)
    return settled


def _refuse_ignored(method: Method) -> None:
    """Raises for parts of a method that peft's own model does not have."""
    usual = {"init": None, "update": AdamW(), "also": ()}
    ignored = [key for key, value in usual.items() if getattr(method, key) != value]
    if ignored:
        raise LuthierError(
            f"peft:{method.name} is peft's own model, which reads no {' and no '.join(ignored)}; leave that out for "
            "it, or compare Luthier's method of the same name."
        )


def _budgeted(method: Method, budget: str | None) -> Method:
    """The method under a budget, where it has a rank for it to choose."""
    if method.kind == "base" or budget is None:
        return method
    if isinstance(method.form, Full):
        note = "exempt from the budget: the yardstick"
    elif "rank" in method.form.settings():
        return dataclasses.replace(method, budget=budget)
    else:
        note = "it has no rank for the budget to choose; what it spends is what it trains"
    return dataclasses.replace(method, budget=None, notes=(*method.notes, note))
