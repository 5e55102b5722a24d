"""The file of gates: which checks a model has to pass.

[[gate]]
by = "held_loss"              # a name of `luthier list gates`
data = "held.jsonl"           # relative paths start at this file
tolerance = 0.05              # further settings of the gate
[[gate]]
name = "arithmetic"           # how it is called in the report (default: `by`, numbered where it comes again)
by = "task_score"
data = "gym:chain_sum"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.contracts.component import find
from luthier.core.contracts.gate import Gate
from luthier.core.errors import LuthierError
from luthier.core.files import located
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.toml import tomllib

Named = dict[str, Gate]
"""Gates by how the report calls them."""


def read_gates(path: str | Path) -> Named:
    """Returns the gates of a TOML file; raises `LuthierError` for unknown names and settings, with near ones."""
    file = path_of(path)
    if not file.is_file():
        raise LuthierError(f"no file of gates {file}; expected TOML with a [[gate]] table for each check.")
    with guarded(f"{file} is not TOML"):
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    listed = values.get("gate")
    unknown = set(values) - {"gate"}
    if unknown or not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        what = f"unknown keys {', '.join(sorted(unknown))}" if unknown else "no [[gate]] table"
        raise LuthierError(f"{file} has {what}; expected a [[gate]] table for each check.")
    return named([_gate(each, file, number) for number, each in enumerate(listed, 1)])


def _gate(values: dict[str, Any], file: Path, number: int) -> tuple[str | None, Gate]:
    settings = dict(values)
    by, name = settings.pop("by", None), settings.pop("name", None)
    if not isinstance(by, str) or not isinstance(name, str | None):
        raise LuthierError(f'{file}: gate {number} needs by = "…", a name of `luthier list gates`.')
    source = settings.get("data")
    if isinstance(source, str):
        settings["data"] = located(source, file.parent)
    try:
        gate = find("gates", by, Gate).from_dict(settings)
    except LuthierError as error:
        raise LuthierError(f"{file}: gate {number}: {error}") from None
    return name, checked(gate)


def checked(gate: Gate) -> Gate:
    """Returns the gate, if it has the rows that it reads."""
    if gate.data is None and not gate.exact:
        raise LuthierError(f"{gate.name()} reads rows; give data.")
    return gate


def named(gates: Sequence[tuple[str | None, Gate]]) -> Named:
    """Returns the gates by name; those without one are called as their kind, and numbered where it comes again."""
    found: Named = {}
    for name, gate in gates:
        wanted = name or gate.name()
        if name is not None and name in found:
            raise LuthierError(f"two gates are called {name!r}; give one of them another name.")
        number = 1
        while (key := wanted if number == 1 else f"{wanted}-{number}") in found:
            number += 1
        found[key] = gate
    return found
