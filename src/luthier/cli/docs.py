"""Writing docs/methods.md from the registry: `python -m luthier.cli.docs [FILE]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.cli.describe import body, facts, settings_of
from luthier.cli.source import axes
from luthier.core.contracts.component import Component, find, names
from luthier.methods.recipe import read_recipe, recipe_files

FILE = Path("docs/methods.md")
REMAKE = "python -m luthier.cli.docs"
HEAD = f"""# Methods

Written from the source by `{REMAKE}`; edit the methods' files, not this one.
"""


def markdown() -> str:
    """Returns the whole page: a table for each axis, every component, the recipes."""
    parts = [HEAD]
    for axis, question in axes().items():
        found = [find(axis, name) for name in names(axis)]
        if found:
            parts += [f"## {axis.capitalize()}: {question}\n", *_overview(found), ""]
            for cls in found:
                parts += _section(cls)
    parts += ["## Recipes: settings of which paper?\n", *_recipes()]
    return "\n".join(parts).rstrip() + "\n"


def _overview(found: Sequence[type[Component]]) -> Iterator[str]:
    yield from row("name", "equation", "paper")
    for cls in found:
        yield line(f"[{cls.name()}](#{cls.name()})", cls.equation(), cls.paper)


def _section(cls: type[Component]) -> Iterator[str]:
    yield from (f"### {cls.name()}\n", f"    {cls.equation()}\n")
    if text := body(cls):
        yield f"{text}\n"
    yield from (f"- {name}: {text}" for name, text in facts(cls).items())
    yield ""
    if settings := settings_of(cls):
        yield from row("setting", "type", "default", "meaning")
        for each in settings:
            default = "none" if each.default is None else str(each.default)
            yield line(f"`{each.name}`", each.type, f"`{default}`", each.doc)
        yield ""


def _recipes() -> Iterator[str]:
    yield "`luthier explain NAME` shows every setting with whose it is; the last column has those that are ours.\n"
    yield from row("name", "description", "paper", "settings from", "ours")
    for file in recipe_files().values():
        recipe = read_recipe(str(file))
        ours = ", ".join(f"`{key}`" for key in recipe.ours)
        yield line(recipe.name, recipe.description, recipe.paper, recipe.source, ours)


def row(*cells: str) -> Iterator[str]:
    """Yields the head of a table."""
    yield line(*cells)
    yield line(*["---"] * len(cells))


def line(*cells: str) -> str:
    """Returns a row of a table; a bar inside a cell is escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> None:
    """Writes the page to the file given, docs/methods.md by default."""
    file = Path(arguments[0]) if arguments else FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
