"""A plan: a run file of several adapters, which are trained at once.

model = "smollm2-135m"         # what stands above the first [[adapter]] is of all of them
data = "train.jsonl"
out = "adapters"
[training]
steps = 300
[[adapter]]
name = "wide"                  # its name, and that of its folder in `out`
method = "lora"                # what else a run file may say goes before what is of all
form = {rank = 32}
[[adapter]]
name = "edit"
method = "loreft"
training = {lr = 1e-3}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.paths import path_of
from luthier.training.runfile import ADAPTERS, RunFile, described, filled, is_run_file, lasting, overlaid, values_in
from luthier.training.spec import Run


def is_plan(name: str) -> bool:
    """Whether a run file holds several adapters (`read_plan`)."""
    return is_run_file(name) and path_of(name).is_file() and ADAPTERS in values_in(path_of(name))[0]


def read_plan(name: str | Path) -> list[RunFile]:
    """The run of each `[[adapter]]` of a plan: what the table says, over what stands above the first one.

    Its `name` is the adapter's, and names its folder in the plan's `out`. Raises `LuthierError` for two of one name,
    for a table without one, and for what `read_run_file` refuses.
    """
    path = path_of(name)
    values = filled(values_in(path)[0], path)
    if ADAPTERS not in values:
        raise LuthierError(
            f"{path} holds no [[{ADAPTERS}]], expected one or more; a single run is read by read_run_file."
        )
    tables, shared = values.pop(ADAPTERS), values
    if not isinstance(tables, list) or not tables or not all(isinstance(each, dict) for each in tables):
        raise LuthierError(f"{path}: {ADAPTERS} is to be one table or more, each under [[{ADAPTERS}]].")
    names = [each.get("name") for each in tables]
    if not all(each not in (None, "") for each in names):
        raise LuthierError(f'{path}: an adapter has no name; add a line name = "…" to each [[{ADAPTERS}]].')
    if other := [each for each in names if not isinstance(each, str)]:
        raise LuthierError(f'{path}: the name of an adapter is {other[0]!r}, expected a text; write name = "…".')
    if twice := [each for each in names if names.count(each) > 1]:
        raise LuthierError(f"{path}: two adapters are called {twice[0]!r}; give each a name of its own.")
    if "out" in {key for each in tables for key in each}:
        raise LuthierError(f"{path}: out stands above the first [[{ADAPTERS}]]; each adapter has its folder in it.")
    if not isinstance(out := shared.get("out", Run.out), str):
        raise LuthierError(f'{path}: out is {out!r}, expected a text, the folder of all adapters; write out = "…".')
    return [described(path, _laid(shared, each) | {"out": str(Path(out) / each["name"])}) for each in tables]


def runs_of(name: str | Path, trust_remote_code: bool) -> list[Run]:
    """Returns the runs of a plan; raises as `read_plan` does, and for code that nobody trusted."""
    files = read_plan(name)
    for file in files:
        file.check_trust(trust_remote_code)
    return [file.run() for file in files]


def _laid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    tables = {key: value for key, value in over.items() if isinstance(value, dict) and isinstance(under.get(key), dict)}
    laid = {key: (lasting if key == "training" else overlaid)(under[key], value) for key, value in tables.items()}
    return {**under, **over, **laid}
