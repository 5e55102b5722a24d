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
[ranks]                        # name = "gelora", and the settings of that allocation
[init]                         # name = "eva", and the settings of that initialiser
[update]                       # name = "lisa", and the settings of that update
[objective]                    # name = "mft", and the settings of that objective
[select]                       # name = "bm25", and the settings of that selection of rows
[calibration]                  # how the data are looked at before ranks and starts are chosen
[training]                     # hyper-parameters of training
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.component import find, names
from luthier.core.contracts.plugins import installed_folders, plugin_folders
from luthier.core.errors import LuthierError, near

if TYPE_CHECKING:
    from luthier.core.contracts.form import Form

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

SHOWN: dict[str, tuple[type, str]] = {
    "dict": (dict, "a table"),
    "list[dict": (list, "a list of tables"),
    "list[str": (list, "a list of strings"),
    "str": (str, "a string"),
}
"""What a key holds, by how its type begins."""
TABLES = ("form", "ranks", "init", "update", "objective", "select", "calibration", "training")
"""Keys that hold settings."""
SHIPPED = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says. Flags of the command line go before it."""

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
    where: str | None = None
    """Where the form goes; None for the form's own default."""
    budget: str | None = None
    """What the ranks may cost; None for no bound."""
    form: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the form."""
    also: list[dict[str, Any]] = field(default_factory=list)
    """Further forms of the same adapter: `{"method", "where", "form"}` each (see `luthier.methods.targeted_form`)."""
    ranks: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the allocation of ranks; empty for the form's own rank."""
    init: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the initialiser; empty for the form's own start."""
    update: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the update; empty for plain AdamW."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the objective; empty for supervised fine-tuning."""
    select: dict[str, Any] = field(default_factory=dict)
    """Name and settings of what chooses the rows; empty for all of them."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Settings of the calibration pass."""
    training: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of training."""


def recipe_files() -> dict[str, Path]:
    """`{name: file}` of the recipes of Luthier, of `LUTHIER_PATH` and of installed packages, sorted."""
    installed = [folder for _, folder in installed_folders("recipes")]
    folders = [SHIPPED, *map(Path, plugin_folders("recipes")), *installed]
    return dict(sorted((file.stem, file) for folder in folders for file in folder.glob("*.toml")))


def form_named(name: str) -> type[Form]:
    """The form of that name; a recipe's name raises `LuthierError` that says how recipes are asked for."""
    if name in recipe_files() and name.replace("-", "_") not in names("forms"):
        raise LuthierError(
            f"{name} is a recipe, for the form {read_recipe(name).method}: `luthier train` takes it by --recipe {name} "
            f"and `luthier compare` by its name; its settings are shown by `luthier explain {name}`."
        )
    return find("forms", name)  # type: ignore[return-value]


def read_recipe(name: str) -> Recipe:
    """The recipe of this name, or in this .toml file. Raises `LuthierError` on anything that does not fit."""
    files = recipe_files()
    path = files.get(name, Path(name).expanduser())
    if not path.is_file():
        raise LuthierError(
            f"no recipe {name!r}{near(name, files)} There are: {', '.join(files)}; or give a .toml file."
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LuthierError(f"{path} is not valid TOML: {error}.") from None
    return _checked(path, values)


def _checked(path: Path, values: dict[str, Any]) -> Recipe:
    known = {f.name: str(f.type) for f in fields(Recipe) if f.name != "name"}
    for key, value in values.items():
        if key not in known:
            raise LuthierError(f"{path} has an unknown key {key!r}{near(key, known)} A recipe has: {', '.join(known)}.")
        kind, shown = next(each for begins, each in SHOWN.items() if known[key].startswith(begins))
        inside = dict if shown.endswith("tables") else str
        if not isinstance(value, kind) or (kind is list and not all(isinstance(each, inside) for each in value)):
            raise LuthierError(f"{path}: {key} is {value!r}; expected {shown}.")
    for key in ("ranks", "init", "update", "objective", "select"):
        if key in values and not isinstance(values[key].get("name"), str):
            raise LuthierError(f'{path}: [{key}] names nothing; add a line such as name = "eva".')
    if "method" not in values:
        raise LuthierError(f'{path} names no method; add a line such as method = "wegeft".')
    return _owned(path, Recipe(path.stem, **values))


def _owned(path: Path, recipe: Recipe) -> Recipe:
    """The recipe; raises for keys in `ours` that name no setting of its tables."""
    for key in recipe.ours:
        table, _, name = key.partition(".")
        if key != "where" and (table not in (*TABLES, "also") or not name):
            raise LuthierError(
                f"{path}: ours holds {key!r}; expected where, or the key of a setting, such as training.clip."
            )
    return recipe
