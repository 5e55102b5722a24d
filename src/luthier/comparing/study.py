"""What a study is: models, data sets, methods and seeds, as a TOML file or a value.

    models = ["models/minilm"]                 # folders, hub ids, names of the catalogue
    methods = ["base", "lora", "peft:lora", "loreft", "full"]
    seeds = 3                                  # 0, 1 and 2; or a list
    budget = "1%"                              # what the adapters may cost
    [training]                                 # of every run: steps, batch, max_length, …
    steps = 300
    [data.cola]
    train = "cola/train.jsonl"                 # one source, or a list of them
    test = "cola/dev.jsonl"                    # one source, or a table of them: {addsub = "…", gsm8k = "…"}
    rows = 2000                                # training rows, drawn by the seed
    metric = "mcc"
    [data.cola.training]                       # over [training], for this data set
    max_length = 64
    [settings.lora]                            # over the recipe, for this method
    where = "query, value"
    form = {rank = 4}

Relative paths that exist beside the file are taken from there.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.contracts.component import check_type
from luthier.core.errors import LuthierError, near
from luthier.core.files import located
from luthier.core.guard import guarded, reason
from luthier.core.json_text import loads
from luthier.core.paths import path_of
from luthier.core.toml import tomllib
from luthier.methods.choices import Written

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
METHODS = ("base", "lora", "full")
"""What is compared by default."""


@dataclass(frozen=True)
class DataSet:
    """A data set of a study: what models are trained and tested on."""

    train: list[str]
    """Sources of the training rows, one after another."""
    test: dict[str, str] = field(default_factory=dict)
    """Sources of the test parts by name; none: the test split of `train`, or a fifth of its rows, held out."""
    validation: str | None = None
    """Source of the validation part. Default: a share of the training rows, eval_fraction."""
    rows: int | None = None
    """Take that many training rows, drawn by the seed."""
    test_rows: int | None = None
    """Take that many rows of each test part, the same for all."""
    task: str | None = None
    """What the rows are for. Default: what their columns tell."""
    columns: str | None = None
    """Columns that the data call otherwise, by what they are: text=body,label=category."""
    metric: str | None = None
    """The main metric. Default: the first that the task has."""
    max_new_tokens: int = 128
    """Longest answer."""
    models: list[str] = field(default_factory=list)
    """Models that are fitted to it. Default: all."""
    training: dict[str, Any] = field(default_factory=dict)
    """Settings of training, over the study's."""


@dataclass(frozen=True, kw_only=True)
class Settings(Written):
    """A study's settings of one method, over its recipe and its defaults: choices of a run as a recipe states them."""

    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study: every model with every data set, method and seed, under one budget."""

    models: dict[str, str]
    """Sources by the names that tables show."""
    data: dict[str, DataSet]
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Forms, recipes, `base`, `icl:k=8`, `peft:lora`, `peft:dora`. A name that is both a form's and a recipe's means
    the form; `recipe:lora` is the recipe."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    budget: str | None = None
    """What the adapters may cost: a share of the model (0.1%), trainable parameters (500k) or a size on disk (8MB)."""
    until_told: float | None = None
    """The margin within which two methods are as good as one. Seeds are added until every two methods are told apart or
    shown to lie within it, at an error rate of 5% over all looks; None: the seeds given, no more."""
    most_seeds: int = 20
    """Seeds at the most, with until_told."""
    hours: float | None = None
    """Hours after which no seed is added, with until_told."""
    training: dict[str, Any] = field(default_factory=dict)
    """Settings of training, the same for every method."""
    settings: dict[str, Settings] = field(default_factory=dict)
    """By method."""
    tune: int = 0
    """Trials of the search for learning rate, rank (without a budget) and positions, for each method (0: none)."""
    tune_steps: int | None = None
    """Steps of a trial. Default: those of a run."""
    held: str | None = None
    """Data of texts whose loss is measured before and after."""
    others: int = 100
    """Rows of each other data set that a run is tested on, before and after (0: none)."""
    timing: int = 5
    """Steps timed against the frozen base (0: none)."""
    batch: int = 16
    """Rows at a time in tests."""
    keep_adapters: bool = False
    """Keep the adapters of finished runs."""

    def __post_init__(self) -> None:
        for name, wanted in (("models", "model"), ("data", "data set"), ("methods", "method"), ("seeds", "seed")):
            if not getattr(self, name):
                raise LuthierError(f"the study has no {wanted}; give at least one ({name}).")
        for name in (*self.models, *self.data, *(part for each in self.data.values() for part in each.test)):
            if not NAME.fullmatch(name):
                raise LuthierError(f"{name!r} cannot name a model or data set; use letters, digits, '.', '_' and '-'.")
        for name in ("methods", "seeds"):
            given = getattr(self, name)
            twice = next((each for each in given if given.count(each) > 1), None)
            if twice is not None:
                raise LuthierError(f"{name} holds {twice} twice.")
        for name, low in (("tune", 0), ("tune_steps", 1), ("others", 0), ("timing", 0), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise LuthierError(f"{name} is {value}; expected at least {low}.")
        self._check_until()
        tables = [self.training, *(each.training for each in (*self.data.values(), *self.settings.values()))]
        if any("seed" in each for each in tables):
            raise LuthierError(
                "training has a seed, and every method of a study is trained with each of its seeds; say seeds = [7]."
            )
        for name in self.settings:
            if name not in self.methods:
                raise LuthierError(f"settings are for {name!r}{near(name, self.methods)} The study has no such method.")
        for name, each in self.data.items():
            for model in each.models:
                if model not in self.models:
                    raise LuthierError(f"data {name} is for the model {model!r}{near(model, self.models)}")

    def _check_until(self) -> None:
        if self.until_told is None:
            if self.hours is not None:
                raise LuthierError(
                    "hours bound the seeds that are added; say until when (until_told), or leave it out."
                )
            return
        if not 0 < self.until_told < math.inf or (self.hours is not None and not self.hours > 0):
            raise LuthierError(f"until_told is {self.until_told} and hours {self.hours}; expected more than 0.")
        if self.most_seeds < max(2, len(self.seeds)):
            raise LuthierError(
                f"most_seeds is {self.most_seeds} and the study has {len(self.seeds)} seeds; expected that many "
                "at least, and 2."
            )

    def pairs(self) -> list[tuple[str, str]]:
        """Returns (model, data set) of every table."""
        return [(model, name) for name, each in self.data.items() for model in each.models or self.models]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    @guarded("the study is damaged, or was changed by hand")
    def from_dict(cls, values: dict[str, Any], folder: Path | None = None) -> Study:
        """Returns a study from what its file says; unknown and ill-typed entries raise `LuthierError`."""
        given = dict(values)
        place = folder or Path()
        if "models" in given:
            given["models"] = _named(given["models"], "models", place)
        if isinstance(given.get("seeds"), int):
            given["seeds"] = list(range(given["seeds"]))
        if isinstance(given.get("held"), str):
            given["held"] = located(given["held"], place)
        for key, made in (("data", lambda each: _data(each, place)), ("settings", lambda each: _settings(each, place))):
            kind = DataSet if key == "data" else Settings
            check_type(key, given.get(key, {}), dict)
            tables = {name: _dict(f"{key}.{name}", each) for name, each in given.get(key, {}).items()}
            given[key] = {name: _filled(kind, f"{key}.{name}", made(each)) for name, each in tables.items()}
        if isinstance(given.get("data"), dict):
            given["data"] = {name: _test_named(name, each) for name, each in given["data"].items()}
        return _filled(cls, "the study", given)


def read_study(file: str | Path) -> Study:
    """Returns the study in a .toml file, or in the study.json of an earlier one."""
    path = path_of(file)
    try:
        text = path.read_text(encoding="utf-8")
        values = loads(text)["study"] if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise LuthierError(f"cannot read the study {file}: {error.strerror}.") from None
    except Exception as error:
        raise LuthierError(f"{file} is not a study: {reason(error, bare=True)}.") from None
    try:
        return Study.from_dict(values, path.parent)
    except LuthierError as error:
        raise LuthierError(f"{file}: {error}") from None


def label(source: str) -> str:
    """How a table names a model or a data set: `cola` of glue/cola/train.jsonl."""
    path = Path(source.removeprefix("gym:").partition("?")[0])
    usual = path.stem.lower() in ("train", "training", "data")
    stem = path.parent.name if usual and path.parent.name else path.stem if path.suffix in SUFFIXES else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "data"


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gguf")


def _named(value: Any, key: str, folder: Path) -> Any:
    """`{name: source}` of a source, of several, or of a table of them."""
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and all(isinstance(each, str) for each in listed):
        names = [label(each) for each in listed]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise LuthierError(f'{key}: two are called {twice!r}; name them: {key} = {{first = "…", second = "…"}}.')
        listed = dict(zip(names, listed, strict=True))
    found = _dict(key, listed)
    for name, each in found.items():
        check_type(f"{key}.{name}", each, str)
    return {name: located(each, folder) for name, each in found.items()}


def _data(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    given = dict(values)
    if isinstance(given.get("train"), str):
        given["train"] = [given["train"]]
    if isinstance(given.get("train"), list):
        given["train"] = [located(each, folder) if isinstance(each, str) else each for each in given["train"]]
    if isinstance(given.get("test"), str):
        given["test"] = {"": given["test"]}
    if isinstance(given.get("test"), dict):
        given["test"] = {
            name: located(each, folder) if isinstance(each, str) else each for name, each in given["test"].items()
        }
    if isinstance(given.get("validation"), str):
        given["validation"] = located(given["validation"], folder)
    return given


def _settings(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    target = values.get("target")
    return values | {"target": located(target, folder)} if isinstance(target, str) else values


def _test_named(name: str, each: DataSet) -> DataSet:
    """A single test part bears the name of the data set."""
    return dataclasses.replace(each, test={part or name: source for part, source in each.test.items()})


def _dict(label: str, value: Any) -> dict[str, Any]:
    check_type(label, value, dict)
    return value


def _filled(cls: Any, what: str, values: dict[str, Any]) -> Any:
    """The dataclass with these values, names and types checked."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise LuthierError(f"{what} has an unknown entry {key!r}{near(key, hints)} There are: {', '.join(hints)}.")
        check_type(f"{what}: {key}", value, hints[key])
        items = typing.get_args(hints[key])
        for item in value if isinstance(value, list) else []:
            check_type(f"{what}: {key}", item, items[0])
    fields = {f.name: f for f in dataclasses.fields(cls)}
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise LuthierError(f"{what} lacks {', '.join(missing)}.")
    return cls(**values)
