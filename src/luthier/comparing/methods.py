"""The methods of a study by name: what each attaches, and how it is trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.comparing.study import Settings
from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form
from luthier.core.contracts.selection import Selection
from luthier.core.errors import LuthierError, near
from luthier.methods.choices import CHOICES, Choices, made, written
from luthier.methods.forms.full import Full
from luthier.methods.recipe import read_recipe, recipe_files
from luthier.training.spec import Training

OWN = ("lr", "schedule", "min_lr", "decay", "cycles", "power", "warmup", "weight_decay", "clip")
"""Settings of training that are a method's own. How much it sees (steps, batch, lengths) is the study's to say."""
PEFT = {"lora": False, "dora": True}
"""Competitors of peft, with `LoraConfig.use_dora`."""


@dataclass(frozen=True, kw_only=True)
class Method(Choices):
    """One method of a study, independent of the model."""

    name: str
    kind: str
    """Who fits it, a key of `luthier.comparing.fit.KINDS`."""
    usual: bool = False
    """`where` is a recipe's habit, which gives way on a model that has no such sites."""
    training: dict[str, Any] = field(default_factory=dict)
    """Settings of training under the study's: a recipe's."""
    over: dict[str, Any] = field(default_factory=dict)
    """Settings of training over the study's: what it says of this method."""
    shots: int = 0
    """Training rows before each prompt of the test, of in-context learning."""
    shown_by: str = ""
    """The selection that finds them."""
    notes: tuple[str, ...] = ()


def resolve(name: str, settings: Settings, budget: str | None) -> Method:
    """Returns the method `name` with a study's settings and budget; raises `LuthierError` for what is none."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix not in KINDS:
        raise LuthierError(f"no method {name!r}: {prefix}: is none of {', '.join(f'{k}:' for k in KINDS if k)}.")
    found = KINDS[prefix if colon else ""](rest if colon else name)
    return dataclasses.replace(_budgeted(_settled(found, settings), settings.budget or budget), name=name)


def described(method: Method) -> dict[str, Any]:
    """Everything that a method's runs follow from, as JSON holds it."""
    found = method.to_dict() | ({} if method.measures else {"calibration": None})
    return json.loads(json.dumps({key: value for key, value in found.items() if key != "notes"}))


def redescribed(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns what `described` says today of a method that it described in an earlier version.

    Names of components that were spelled otherwise are today's, and what the version did not know has its default.
    Raises `LuthierError` for a method whose component or setting is no longer there.
    """
    return described(Method(**Method.read(stored)))


def _any(name: str) -> Method:
    """`base`, else a form, else a recipe: a name that is both means the form, as it does for `--method`."""
    if name == "base":
        notes = ("exempt from the budget: nothing but a new head is trained",)
        return Method(form=Full(), name=name, kind="base", training={"lr": Form.lr}, notes=notes)
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
    return Method(form=form(), name=name, kind="luthier", notes=notes)


def _recipe(name: str) -> Method:
    recipe = read_recipe(name)
    return Method(
        **made(find("forms", recipe.method, Form), written(recipe)),
        name=Path(name).stem,
        kind="luthier",
        usual=recipe.where is not None,
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


def _icl(words: str) -> Method:
    """Returns the method `icl:k=8` or `icl:k=8&by=random`; raises `LuthierError` for what is none."""
    name = f"icl:{words}"
    given = _shown(name, words)
    by = given.get("by", "bm25")
    cls = find("selections", by, Selection)
    if cls.nearest is Selection.nearest:
        raise LuthierError(f"{name}: {by} finds no rows near a prompt; take bm25 or random.")
    count = int(given["k"])
    note = f"{count} training rows before each prompt, found by {cls.name()}; nothing is trained"
    return Method(form=Full(), name=name, kind="untouched", shots=count, shown_by=cls.name(), notes=(note,))


def _shown(name: str, words: str) -> Mapping[str, str]:
    pairs = [each.partition("=") for each in words.split("&")]
    given = {key: value for key, equal, value in pairs if equal}
    if len(given) < len(pairs) or not {"k"} <= set(given) <= {"k", "by"} or not given["k"].isdecimal():
        raise LuthierError(f"no method {name!r}: write icl:k=8, or icl:k=8&by=random for rows by chance.")
    if int(given["k"]) < 1:
        raise LuthierError(f"{name} shows no row; that is base.")
    return given


KINDS = {"": _any, "form": _form, "recipe": _recipe, "peft": _peft, "icl": _icl}
"""What a prefix asks for."""


def _settled(method: Method, settings: Settings) -> Method:
    """The method under what the study says of it."""
    if method.shots:
        if written(settings) or settings.training:
            raise LuthierError(f"{method.name} trains nothing, so its settings would be ignored; leave them out.")
        return method
    stated = {key: value for key, value in written(settings).items() if key != "budget"}  # `_budgeted` gives it
    changes = made(type(method.form), {**stated, "form": method.form.to_dict() | settings.form})
    changes |= {"usual": False} if "where" in stated else {}
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
    plain = Choices(method.form)
    ours = (name for name, choice in CHOICES.items() if choice.adapter)
    ignored = [name for name in ours if getattr(method, name) != getattr(plain, name)]
    if ignored:
        raise LuthierError(
            f"peft:{method.name} is peft's own model, which reads no {' and no '.join(ignored)}; leave that out for "
            "it, or compare Luthier's method of the same name."
        )


def _budgeted(method: Method, budget: str | None) -> Method:
    """The method under a budget, where it has a rank for it to choose."""
    if method.kind in ("base", "untouched") or budget is None:
        return method
    if isinstance(method.form, Full):
        note = "exempt from the budget: the yardstick"
    elif "rank" in method.form.settings():
        return dataclasses.replace(method, budget=budget)
    else:
        note = "it has no rank for the budget to choose; what it spends is what it trains"
    return dataclasses.replace(method, budget=None, notes=(*method.notes, note))
