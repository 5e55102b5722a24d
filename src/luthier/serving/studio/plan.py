"""What a person chose on the page, as the words of a command line: names are checked, and a value stays one word."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt

from luthier.core.contracts.component import find, names
from luthier.serving.http.refusal import Refusal
from luthier.serving.studio.shelf import Shelf

Value = StrictBool | StrictInt | StrictFloat | str
NOT_HERE = ("report_to", "shard")
"""Settings of training that need more than this machine."""


class Plan(BaseModel):
    """A run that is to be looked at, or started."""

    model_config = ConfigDict(extra="forbid", strict=True, str_max_length=500)

    model: str
    data: str
    eval_data: str | None = None
    method: str
    settings: dict[str, Value] = Field(default_factory=dict, max_length=40)
    """Those of the method."""
    training: dict[str, Value] = Field(default_factory=dict, max_length=40)
    where: str | None = None
    columns: str | None = None
    limit: int | None = None

    def words(self, shelf: Shelf) -> list[str]:
        """Returns the arguments of `luthier train`, the folder aside; raises `Refusal` for a name that is not one."""
        if self.method not in names("forms"):
            raise Refusal(400, f"there is no method {self.method!r:.80}.", param="method", code="not_found")
        own = set(find("forms", self.method).settings())
        found = [shelf.model(self.model), shelf.source(self.data), f"--method={self.method}"]
        found += _flags(self.settings, own, f"settings of {self.method}")
        found += _flags(self.training, set(training_settings()), "settings of training")
        held = None if self.eval_data is None else shelf.source(self.eval_data)
        told = {"eval-data": held, "where": self.where, "columns": self.columns, "limit": self.limit}
        return found + [f"--{name}={value}" for name, value in told.items() if value is not None]


class Named(Plan):
    """A run to start."""

    name: str


class Wanted(BaseModel):
    """An export: the format."""

    model_config = ConfigDict(extra="forbid", strict=True)

    to: str


class Asked(BaseModel):
    """Runs to chat with, of one base."""

    model_config = ConfigDict(extra="forbid", strict=True)

    runs: list[str] = Field(min_length=1, max_length=16)


def training_settings() -> dict[str, Any]:
    """Returns `{name: default}` of the settings of training that the page offers."""
    from luthier.training.spec import Training

    return {f.name: f.default for f in dataclasses.fields(Training) if f.name not in NOT_HERE}


def _flags(given: dict[str, Any], known: set[str], what: str) -> list[str]:
    if unknown := sorted(set(given) - known):
        raise Refusal(
            400, f"{unknown[0]!r:.80} is none of the {what}.", param=unknown[0][:80], code="unknown_parameter"
        )
    flags = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        flags.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag}={value}")
    return flags
