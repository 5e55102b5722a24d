"""Recipes: settings of a paper, written down as TOML. One file, one system.

description = "one line"
paper = "authors, year, identifier"
source = "owner/repository 1a2b3c4: file"   # where the settings were read
ours = ["training.clip"]       # settings that are ours, not the source's: those of a table that it states or leaves out
method = "wegeft"              # a form
where = "q_proj, v_proj"       # its own default when missing
budget = "0.1%"                # what the ranks may cost
[form]                         # the form's hyper-parameters
[[also]]                       # a further form of the same adapter: its method, where and form; as many as wanted
[update]                       # name = "lisa", and the settings of that update; so too every other choice of a run
[calibration]                  # how the data are looked at before ranks and starts are chosen
[training]                     # hyper-parameters of training

Which choices there are, `luthier.methods.choices` declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from luthier.core.contracts.component import find, hints, names
from luthier.core.contracts.plugins import installed_folders, plugin_folders
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.toml import tomllib
from luthier.methods.choices import CHOICES, COMPONENTS, Written, example

if TYPE_CHECKING:
    from luthier.core.contracts.form import Form

TABLES = (*(name for name, choice in CHOICES.items() if choice.written in (dict, list)), "training")
"""Keys that hold settings."""
SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe(Written):
    """What a recipe file says: choices of a run, settings of training, and where they were read.

    Flags of the command line go before it.
    """

    name: str
    method: str
    """Name of the form."""
    description: str = ""
    """One line."""
    paper: str = ""
    """Authors, year and identifier of the source of the settings."""
    source: str = ""
    """Where the settings were read: repository, commit and file, or the paper's table. Default: they are one's own."""
    ours: list[str] = field(default_factory=list)
    """Settings that the source does not give, as `table.key`: stated here, or left to Luthier's default."""
    training: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of training."""


def recipe_files() -> dict[str, Path]:
    """Returns `{name: file}` of the recipes of Luthier, of `LUTHIER_PATH` and of installed packages, sorted."""
    installed = [folder for _, folder in installed_folders("recipes")]
    folders = [SHIPPED, *map(Path, plugin_folders("recipes")), *installed]
    return dict(sorted((file.stem, file) for folder in folders for file in folder.glob("*.toml")))


def form_named(name: str) -> type[Form]:
    """Returns the form of that name; a recipe's name raises `LuthierError` that says how recipes are asked for."""
    if name in recipe_files() and name.replace("-", "_") not in names("forms"):
        raise LuthierError(
            f"{name} is a recipe, for the form {read_recipe(name).method}: `luthier train` takes it by --recipe {name} "
            f"and `luthier compare` by its name; its settings are shown by `luthier explain {name}`."
        )
    return find("forms", name)  # type: ignore[return-value]


def refuse_other(recipe: Recipe, method: str | None) -> None:
    """Raises for a recipe of another method than the one asked for (None: none is)."""
    if method is not None and find("forms", method) is not find("forms", recipe.method):
        raise LuthierError(
            f"recipe {recipe.name!r} is for {recipe.method}, not for {method}; leave one of the two out."
        )


def read_recipe(name: str) -> Recipe:
    """Returns the recipe of this name, or in this .toml file. Raises `LuthierError` on anything that does not fit."""
    files = recipe_files()
    path = files.get(name) or path_of(name, "no recipe")
    if not path.is_file():
        raise LuthierError(
            f"no recipe {name!r}{near(name, files)} There are: {', '.join(files)}; or give a .toml file."
        )
    with guarded(f"{path} is not valid TOML"):
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    return _checked(path, values)


def _checked(path: Path, values: dict[str, Any]) -> Recipe:
    check_written(
        str(path), {key: hint for key, hint in recipe_types().items() if key != "name"}, values, "A recipe has"
    )
    if "method" not in values:
        raise LuthierError(f'{path} names no method; add a line such as method = "wegeft".')
    return _owned(path, Recipe(name=path.stem, **values))


def recipe_types() -> dict[str, Any]:
    """Returns `{field: type}` of a recipe."""
    declared: Any = Recipe  # whose base is made at run time
    return {key: hint for key, (hint, _) in hints(declared).items()}


def check_written(file: str, known: Mapping[str, Any], values: Mapping[str, Any], has: str) -> None:
    """Raises for what cannot be in a file whose keys have the types `known`: names, types, tables without a name."""
    for key, value in values.items():
        if key not in known:
            raise LuthierError(f"{file} has an unknown key {key!r}{near(key, known)} {has}: {', '.join(known)}.")
        kind, inside, shown = _shown(known[key])
        if not isinstance(value, kind) or (kind is list and not all(isinstance(each, inside) for each in value)):
            raise LuthierError(f"{file}: {key} is {value!r}; expected {shown}.")
    for key in COMPONENTS:
        if key in values and not isinstance(values[key].get("name"), str):
            raise LuthierError(f"{file}: [{key}] names nothing; add a line such as name = {example(key)!r}.")


def _shown(hint: Any) -> tuple[type, type, str]:
    """(type, that of its items, both for people) of an annotation of a `Written`."""
    kind = next(each for each in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if each is not type(None))
    outer, inside = get_origin(kind) or kind, next(iter(get_args(kind)), str)
    names = {dict: "a table", str: "a string", int: "a whole number", bool: "true or false"}
    several = {dict: "a list of tables", str: "a list of strings"}
    return outer, inside, several[inside] if outer is list else names[outer]


def _owned(path: Path, recipe: Recipe) -> Recipe:
    """The recipe; raises for keys in `ours` that name no setting of its tables."""
    for key in recipe.ours:
        table, _, name = key.partition(".")
        if key != "where" and (table not in TABLES or not name):
            raise LuthierError(
                f"{path}: ours holds {key!r}; expected where, or the key of a setting, such as training.clip."
            )
    return recipe
