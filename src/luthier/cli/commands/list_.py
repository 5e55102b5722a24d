"""`luthier list`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Command, Given
from luthier.core.errors import LuthierError, near

COLUMNS = {"formats": ("name", "ways", "equation", "paper"), "recipes": ("name", "description", "paper")}
"""What is shown of an axis that has more to tell than equation and paper."""


@dataclass(frozen=True)
class List(Command):
    """List the methods of every axis with their equations and papers, and the recipes."""

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier list",
        "luthier list forms",
        "luthier list forms --family selective",
        "luthier list --family expert",
        "luthier list recipes --json",
    )

    axis: str | None = None
    """One axis only, such as forms or recipes."""
    family: str | None = field(default=None, kw_only=True)
    """Only what is of this family: selective, additive, prompt, reparameterisation or hybrid, for what is trained; or
    rewrites and commands whose rows are expert, distilled or self-improved."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    def run(self, given: Given) -> None:
        from luthier.cli.source import axes

        questions = {**axes(), "recipes": "settings of which paper?"}
        if self.axis is not None and self.axis not in questions:
            known = ", ".join(questions)
            raise LuthierError(f"no axis {self.axis!r}{near(self.axis, questions)} There are: {known}.")
        wanted = [name for name in questions if self.axis in (None, name)]
        if self.family is not None:
            self._family(wanted, questions)
            return
        found = {name: rows for name in wanted if (rows := _rows(name)) or self.axis}
        if self.json:
            say_json(found)
            return
        for name, rows in found.items():
            headed = COLUMNS.get(name, ("name", "equation", "paper"))
            table(headed, ([row[key] for key in headed] for row in rows), f"{name}: {questions[name]}")
            say()
        say("More of one: luthier explain NAME")

    def _family(self, wanted: list[str], questions: dict[str, str]) -> None:
        """Shows the methods of a family by axis, and the commands of a family of data."""
        from luthier.core.families import DATA_FAMILIES, FAMILIES

        assert self.family is not None
        known = {**FAMILIES, **DATA_FAMILIES}
        if self.family not in known:
            raise LuthierError(f"no family {self.family!r}{near(self.family, known)} There are: {', '.join(known)}.")
        found = _of_family(wanted, self.family)
        if self.axis is None:
            found |= _commands(self.family)
        if not found:
            raise LuthierError(f"nothing of {self.axis} is of the family {self.family}; see luthier list --family.")
        if self.json:
            say_json(found)
            return
        say(f"{self.family}: {known[self.family]}\n")
        for name, rows in found.items():
            title = f"{name}: {questions[name]}" if name in questions else name
            table(tuple(rows[0]), (tuple(row.values()) for row in rows), title)
            say()


def _of_family(axes: list[str], family: str) -> dict[str, list[dict[str, str]]]:
    """Returns the methods of a family by axis; axes without any are left out."""
    from luthier.core.contracts.component import find, names

    found = {}
    for axis in axes:
        classes = [find(axis, name) for name in names(axis)] if axis != "recipes" else []
        rows = [{"name": c.name(), "equation": c.equation(), "paper": c.paper} for c in classes if c.family == family]
        if rows:
            found[axis] = rows
    return found


def _commands(family: str) -> dict[str, list[dict[str, str]]]:
    """Returns the commands of a family of data; nothing where there is none."""
    from luthier.cli.parse import commands

    chosen = {name: cls for name, cls in commands().items() if cls.data_family == family}
    rows = [{"name": name, "what it does": (cls.__doc__ or "").split("\n")[0]} for name, cls in chosen.items()]
    return {"commands": rows} if rows else {}


def _rows(axis: str) -> list[dict[str, str]]:
    if axis == "recipes":
        return _recipes()
    from luthier.cli.source import card
    from luthier.core.contracts.component import names

    cards = [card(axis, name) for name in names(axis)]
    rows = [{"name": each.name, "equation": each.equation, "paper": each.paper} for each in cards]
    if axis == "formats":
        for row, each in zip(rows, cards, strict=True):
            row["ways"] = ", ".join(f"{way}s" for way in ("read", "write") if way in each.defines)
    return rows


def _recipes() -> list[dict[str, str]]:
    from luthier.methods.recipe import read_recipe, recipe_files

    found = [read_recipe(str(file)) for file in recipe_files().values()]
    return [{"name": r.name, "method": r.method, "description": r.description, "paper": r.paper} for r in found]
