"""The choices that a method consists of: the one declaration that runs, flags, recipes, studies and federations read.

A new axis of a run is a field of `Choices`. With it `Run`, `luthier.train`, run.json, `luthier train` (the flag that
names a component, and its settings), recipes and study files (a table), `luthier compare` and `luthier federate` have
the axis as well; what is left to write is the axis itself, and where training asks for it. Torch is not loaded here:
`luthier list` reads recipes without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.contracts.calibration import Calibration
from luthier.core.contracts.component import Component, find, known_fields
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.core.contracts.form import Form
    from luthier.core.contracts.init import Init
    from luthier.core.contracts.objective import Objective
    from luthier.core.contracts.penalty import Penalty
    from luthier.core.contracts.ranks import Ranks
    from luthier.core.contracts.selection import Selection
    from luthier.core.contracts.update import Update
    from luthier.methods.targeted_form import TargetedForm

ALL_ROWS = "is chosen from all rows, and no client of a federation has them"
EARLIER = "goes by what was trained before, and clients start from the server's change in every round"
ONE_FORM = "adds further forms, and the clients of a federation share one"


@dataclass(frozen=True)
class Choice:
    """What is to be known of a field of `Choices` besides its type, its default and its docstring."""

    axis: str = ""
    """The axis whose component it holds; empty for what is not a component."""
    written: type = str
    """What it is in files: a string, a whole number, a table of settings (dict) or several tables (list)."""
    measures: bool = False
    """The data are looked at for it before training, as `calibration` says."""
    apart: str = ""
    """Why the clients of a federation cannot have it; empty where they can."""
    adapter: bool = False
    """It is part of Luthier's own adapters, so a model of peft's has none of it."""
    rows: bool = False
    """What the model reads of the rows follows from it."""

    @property
    def empty(self) -> Any:
        """What files hold where nothing is chosen."""
        return self.written() if self.written in (dict, list) else None


def _of(axis: str = "", written: type = str, flag: str = "", **more: Any) -> dict[str, Any]:
    """The metadata of a field. `flag`, for what is not a component, is the rest of its help on the command line."""
    shown = f"`luthier list {axis}` shows all." if axis else flag
    told = {"flag": shown} if shown else {}
    return {"choice": Choice(axis, dict if axis else written, **more), "named": bool(axis), **told}


def _usual(axis: str, name: str) -> Callable[[], Any]:
    return lambda: find(axis, name)()


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A form, where it goes, and how it starts and is trained."""

    form: Form = field(kw_only=False, metadata=_of("forms"))
    """What is attached, with its hyper-parameters."""
    where: str | None = field(default=None, kw_only=False, metadata=_of())
    """Sites that it is attached to. Default: the form's own."""
    ranks: Ranks | None = field(default=None, metadata=_of("ranks", measures=True, apart=ALL_ROWS))
    """What chooses the rank of each site from the data. Default: the form's own rank everywhere."""
    init: Init | None = field(default=None, metadata=_of("inits", measures=True, apart=ALL_ROWS, adapter=True))
    """Where the trained parameters start. Default: the form's own initialisation."""
    budget: str | None = field(default=None, metadata=_of(apart=ALL_ROWS))
    """What the ranks may cost: a share of the model (0.1%), trainable parameters (500k) or a size on disk (8MB)."""
    update: Update = field(default_factory=_usual("updates", "adamw"), metadata=_of("updates", adapter=True))
    """What becomes of the gradients, and what is trained at all. Default: adamw."""
    objective: Objective = field(default_factory=_usual("objectives", "sft"), metadata=_of("objectives", rows=True))
    """The loss that training lowers. Default: sft; of a training run over pairs of answers dpo, over texts
    that belong near each other info_nce."""
    penalty: Penalty | None = field(default=None, metadata=_of("penalties", apart=EARLIER, adapter=True))
    """What a change of the trained tensors is charged for. Default: nothing."""
    also: tuple[TargetedForm, ...] = field(
        default=(),
        metadata=_of(
            written=list,
            apart=ONE_FORM,
            adapter=True,
            flag='For example [{method = "bottleneck", where = "output(mlp)", form = {dim = 512}}].',
        ),
    )
    """Further forms of the same adapter, each with its place; ranks, init and budget are those of the first form."""
    select: Selection | None = field(default=None, metadata=_of("selections", apart=ALL_ROWS))
    """What chooses the rows that are learned, of those not held out. Default: all are learned."""
    select_rows: int | None = field(default=None, metadata=_of(written=int, apart=ALL_ROWS, rows=True))
    """How many rows the selection takes."""
    target: str | None = field(default=None, metadata=_of(apart=ALL_ROWS, rows=True))
    """Data of the task that the selection chooses rows for: a file, a folder, a hub id or gym:<task>."""
    calibration: Calibration = field(default_factory=Calibration, metadata=_of(written=dict))
    """How the data are looked at before ranks and starting factors are chosen."""

    @property
    def measures(self) -> bool:
        """Whether the data are looked at before training."""
        return any(choice.measures and getattr(self, name) is not None for name, choice in CHOICES.items())

    def chosen(self) -> dict[str, Any]:
        """Returns the choices by name, without what a subclass adds."""
        return {name: getattr(self, name) for name in CHOICES}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON holds them; `read` undoes it."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of this class from what `to_dict` wrote; unknown names raise `LuthierError`."""
        from luthier.methods.targeted_form import TargetedForm

        given = known_fields(cls, values)
        for name, choice in CHOICES.items():
            if choice.axis and given.get(name) is not None:
                given[name] = find(choice.axis, given[name]["name"]).restored(given[name]["settings"])
        if "calibration" in given:
            given["calibration"] = Calibration(**known_fields(Calibration, given["calibration"] or {}))
        return given | ({"also": tuple(map(TargetedForm.from_dict, given["also"]))} if "also" in given else {})


CHOICES: dict[str, Choice] = {f.name: f.metadata["choice"] for f in dataclasses.fields(Choices)}
"""The choices by name."""
COMPONENTS: dict[str, str] = {name: choice.axis for name, choice in CHOICES.items() if choice.axis and name != "form"}
"""Those that name a component beside the form, with its axis."""
_DEFAULTS = {f.name: f.default_factory for f in dataclasses.fields(Choices)}


def usual(name: str) -> str | None:
    """Returns the component that stands where nobody chooses one; None where none does."""
    made = _DEFAULTS[name]
    return None if made is dataclasses.MISSING else made().name()


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Component):
        return {"name": value.name(), "settings": value.to_dict()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return _plain(value.to_dict()) if dataclasses.is_dataclass(value) else value  # type: ignore[union-attr]


# --- in recipes, study files and run files -----------------------------------------------------------


def _field(name: str, choice: Choice) -> tuple[str, Any, Any]:
    kinds: dict[type, Any] = {dict: dict[str, Any], list: list[dict], str: str | None, int: int | None}
    return name, kinds[choice.written], field(default_factory=lambda: choice.empty)


Written: Any = dataclasses.make_dataclass(
    "Written", [_field(name, choice) for name, choice in CHOICES.items()], frozen=True, kw_only=True
)
"""The choices as a file says them: each component is a table with its `name` beside its settings, except the
form, which `method` names. It is the base of what reads such files."""


def written(of: Any) -> dict[str, Any]:
    """Returns the choices that a `Written` states, by name."""
    found = {name: getattr(of, name) for name in CHOICES}
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def made(form: type[Form], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Choices` from a form and choices as a file says them. Raises `LuthierError` for what is none."""
    from luthier.methods.targeted_form import TargetedForm

    found = dict(values)
    for name, axis in COMPONENTS.items():
        if name in found:
            found[name] = _component(name, axis, found[name])
    if "also" in found:
        found["also"] = tuple(map(TargetedForm.from_dict, found["also"]))
    if "calibration" in found:
        found["calibration"] = Calibration(**known_fields(Calibration, found["calibration"]))
    return found | {"form": form.from_dict(found.get("form", {}))}


def by_name(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with components in place of their names, each with its own settings."""
    found = dict(fields)
    for name, choice in CHOICES.items():
        if choice.axis and isinstance(found.get(name), str):
            found[name] = find(choice.axis, found[name])()
    return found


def _component(name: str, axis: str, table: Mapping[str, Any] | None) -> Any:
    if table is None:
        return None
    if not isinstance(table.get("name"), str):
        raise LuthierError(f"[{name}] names no component; add a line such as name = {example(name)!r}.")
    return find(axis, table["name"]).from_dict({key: value for key, value in table.items() if key != "name"})


def example(name: str) -> str:
    """Returns a component that a choice may name, to be shown."""
    from luthier.core.contracts.component import names

    return usual(name) or names(COMPONENTS[name])[0]
