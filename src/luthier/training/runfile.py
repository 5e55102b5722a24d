"""A run as a file: TOML, YAML or JSON that names model and data, or the run.json that a run has left.

model = "smollm2-135m"
data = "${DATA}/train.jsonl"   # a variable of the environment; one that is not set is an error
out = "run"                    # these and the other fields of a run (`luthier.training.spec.Run`)
recipe = "lora"                # settings that stand under those of this file; left out as a rule
method = "lora"                # from here on as in a recipe (`luthier.methods.recipe`)
where = "q_proj, v_proj"
[form]
rank = 16
[update]
name = "lora_plus"
[training]
steps = 300

Paths that exist beside the file are taken from there. What variables say ends up in run.json: they are for paths and
sizes, and no place for secrets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from luthier.core import yaml_text
from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.component import find, hints
from luthier.core.errors import LuthierError, near
from luthier.core.files import located
from luthier.core.guard import guarded
from luthier.core.guard import written as saved
from luthier.core.paths import path_of
from luthier.core.records import read_json, replace_text
from luthier.core.toml import tomllib
from luthier.core.yaml_text import bounded
from luthier.methods.choices import CHOICES, COMPONENTS, made, written
from luthier.methods.recipe import Recipe, check_written, form_named, read_recipe, recipe_types
from luthier.methods.targeted_form import inline
from luthier.training.from_adapter import resolved
from luthier.training.objective import completed
from luthier.training.spec import Run, Training

SUFFIXES = (".toml", ".yaml", ".yml", ".json")
METHOD = "wegeft"
"""What is used by default."""
ADAPTERS = "adapter"
"""The tables of a plan."""
VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
SOURCES = ("model", "data", "eval_data", "target", "from_adapter")
"""Fields that may name a file beside the run's."""
FORM = ("method", "where", "form")
"""What says which form is attached, and where."""
EPOCHS, STEPS = "epochs", "steps"


@dataclass(frozen=True)
class RunFile:
    """What a run file says."""

    path: Path
    recipe: Recipe
    """The choices of the method and the settings of training, over the recipe that the file names."""
    fields: dict[str, Any]
    """`model`, `data` and the other fields of a run."""
    named: str | None = None
    """The recipe that it names."""
    chosen: bool = True
    """Whether it names a form; one that goes on from an adapter need not."""

    def stated(self) -> dict[str, Any]:
        """Returns the fields of the run that it describes, as far as it states them."""
        choices = made(form_named(self.recipe.method), written(self.recipe))
        return resolved({**choices, "training": Training.from_dict(self.recipe.training), **self.fields}, self.chosen)

    def check_trust(self, said: bool) -> None:
        """Raises `LuthierError` where the file alone says that code of the model may run: files are passed around."""
        if self.fields.get("trust_remote_code") and not said:
            raise LuthierError(
                f"{self.path} says trust_remote_code, which no file decides for you. Read the code that the model "
                "brings, and if you trust it, add --trust-remote-code (in Python, trust_remote_code=True)."
            )

    def run(self) -> Run:
        """Returns the run that it describes."""
        return completed(self.stated())


def is_run_file(name: str) -> bool:
    """Whether what was given in place of a model is a run file, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def read_run_file(name: str | Path) -> RunFile:
    """The run file; raises `LuthierError` for unknown keys, other types, variables that are not set and the like."""
    path = path_of(name)
    values, record = values_in(path)
    if ADAPTERS in values:
        raise LuthierError(
            f"{path} is a plan of several adapters ([[{ADAPTERS}]]), and here one run is wanted; `luthier train` takes "
            "plans (in Python, luthier.training.together.train_plan)."
        )
    return described(path, values if record else filled(values, path), record)


def described(path: Path, values: dict[str, Any], record: bool = False) -> RunFile:
    """Returns what the values of a run file at `path` say; those of a `record` name their sources as they are."""
    types = _types()
    check_written(str(path), {key: kind for key, (kind, _) in types.items()}, values, "A run file has")
    missing = [key for key in ("model", "data") if key not in values]
    if missing:
        raise LuthierError(f'{path} names no {" and no ".join(missing)}; add a line such as {missing[0]} = "…".')
    fields = {key: value for key, value in values.items() if types[key][1] == "run"}
    stated = {key: value for key, value in values.items() if types[key][1] == "method"}
    base = read_recipe(located(values["recipe"], path.parent)) if "recipe" in values else None
    recipe = _over(path, base, stated)
    chosen = bool({"recipe", *FORM} & set(values))
    found = RunFile(path, recipe, fields, base.name if base else None, chosen)
    return found if record else _located(found)


def values_in(path: Path) -> tuple[dict[str, Any], bool]:
    """Returns (what a run file holds, whether it is the record of a run)."""
    if not path.is_file():
        raise LuthierError(f"the run file {path} does not exist.")
    if path.suffix.lower() == ".json":
        values = read_json(path)
        if isinstance(values, dict) and isinstance(values.get("run"), dict):
            return values_of(Run.from_dict(values["run"])), True
    else:
        values = parsed(path)
    if not isinstance(values, dict):
        raise LuthierError(f"{path} is not a run file: it holds {type(values).__name__}; expected a table of settings.")
    return values, False


def parsed(path: Path) -> Any:
    """Returns what a .toml or .yaml file holds; raises `LuthierError` for one that cannot be read."""
    with guarded(f"{path} cannot be read"):
        raw = path.read_bytes()
    toml = path.suffix.lower() == ".toml"
    with guarded(f"{path} is not valid {'TOML' if toml else 'YAML'}"):
        text = raw.decode("utf-8")
        return bounded(tomllib.loads(text)) if toml else yaml_text.loads(text)


def _types() -> dict[str, tuple[Any, str]]:
    """`{key: (type, whose it is: the run's, the method's, or the file's)}`."""
    fields = {name: (hint, "run") for name, (hint, _) in hints(Run).items() if name not in (*CHOICES, "training")}
    method = recipe_types()
    return {**fields, "recipe": (str, "file"), "method": (str, "method")} | {
        name: (method[name], "method") for name in (*CHOICES, "training")
    }


# --- variables and paths ---------------------------------------------------------------------------


def filled(values: Any, path: Path, key: str = "") -> Any:
    """Returns the values of a file with variables of the environment in place of `${NAME}`."""
    if isinstance(values, dict):
        return {name: filled(each, path, f"{key}.{name}".lstrip(".")) for name, each in values.items()}
    if isinstance(values, list):
        return [filled(each, path, key) for each in values]
    if not isinstance(values, str) or not VARIABLE.search(values):
        return values
    for name in VARIABLE.findall(values):
        if name not in os.environ:
            told = near(name, os.environ)
            raise LuthierError(f"{path}: {key} is {values!r}, and the variable {name} is not set{told} Set it.")
    text = VARIABLE.sub(lambda found: os.environ[found[1]], values)
    return _typed(key, text) if VARIABLE.fullmatch(values) else text


def _typed(key: str, value: str) -> Any:
    """What a variable says where something else than text is wanted."""
    table, _, name = key.rpartition(".")
    known = {"": Run, "training": Training, "calibration": Calibration}.get(table)
    hint = hints(known)[name][0] if known and name in hints(known) else Any
    if str in (hint, *get_args(hint)):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except Exception:  # the parser has many kinds
        return value


def _located(found: RunFile) -> RunFile:
    """The file's sources, beside it where they are there."""
    folder, recipe = found.path.parent, found.recipe
    fields = {key: located(value, folder) if key in SOURCES else value for key, value in found.fields.items()}
    if recipe.target is not None:
        recipe = replace(recipe, target=located(recipe.target, folder))
    source = recipe.calibration.get("source")
    if isinstance(source, str):
        recipe = replace(recipe, calibration={**recipe.calibration, "source": located(source, folder)})
    return replace(found, fields=fields, recipe=recipe)


# --- over a recipe -----------------------------------------------------------------------------------


def _over(path: Path, base: Recipe | None, stated: dict[str, Any]) -> Recipe:
    """A recipe of what a file states over the one that it names."""
    method = stated.get("method", base.method if base else METHOD)
    if base is None:
        return Recipe(**{**stated, "name": path.stem, "method": method})
    if find("forms", method) is not find("forms", base.method):
        raise LuthierError(
            f"{path}: recipe {base.name!r} is for {base.method}, not for {method}; leave one of them out."
        )
    tables = {key: value for key, value in stated.items() if isinstance(value, dict)}
    merged = {key: overlaid(getattr(base, key), table) for key, table in tables.items()}
    merged["training"] = lasting(base.training, stated.get("training", {}))
    return replace(base, **{**stated, **merged, "method": method})


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings over others, unless these are of another component."""
    same = over.get("name", under.get("name")) == under.get("name")
    return {**under, **over} if same else dict(over)


def lasting(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training over others, whose steps give way where it says how many epochs."""
    stated = dict(under)
    if EPOCHS in over and STEPS not in over:
        stated.pop(STEPS, None)
    return {**stated, **over}


# --- writing -----------------------------------------------------------------------------------------


def values_of(run: Run) -> dict[str, Any]:
    """Everything that a run is, as a run file says it; None is left out, being the default wherever it is allowed."""
    plain = run.to_dict()
    found: dict[str, Any] = {key: plain[key] for key in ("model", "data", "out")}
    found["method"] = run.form.name()
    found |= {key: value for key, value in plain.items() if not isinstance(value, dict | list) and key not in found}
    found |= {"also": plain["also"]} if plain["also"] else {}
    found["form"] = plain["form"]["settings"]
    for name in COMPONENTS:
        if plain[name] is not None:
            found[name] = {"name": plain[name]["name"], **plain[name]["settings"]}
    found |= {"calibration": plain["calibration"]} if run.measures else {}
    return _stated(found | {"training": plain["training"]})


def _stated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stated(each) for key, each in value.items() if each is not None}
    return [_stated(each) for each in value] if isinstance(value, list | tuple) else value


def save_run_file(run: Run, name: str | Path) -> None:
    """Writes the file that repeats a run. A file that says anything else is not replaced."""
    path = path_of(name)
    if not is_run_file(path.name):
        raise LuthierError(f"{path} is to be a run file; end its name with {', '.join(SUFFIXES)}.")
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text_of(run, path.suffix):
        raise LuthierError(f"{path} exists, and says something else than this run; choose another name.")
    if not path.parent.is_dir():
        raise LuthierError(f"{path.parent} is not a folder, so {path} cannot be written there.")
    with saved(str(path), "Choose another name."):
        replace_text(path, text_of(run, path.suffix))


def text_of(run: Run, suffix: str = ".toml") -> str:
    """Returns the run file of a run."""
    values, suffix = values_of(run), suffix.lower()
    if suffix == ".json":
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if suffix in (".yaml", ".yml"):
        import yaml

        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {inline(value)}" for key, value in values.items() if key not in tables]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{name} = {inline(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"
