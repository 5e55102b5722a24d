"""The pages of docs/ that are written from the code: `python -m luthier.cli.docs [FOLDER]`.

`methods.md` from the registries, `api/` from the list of public names, `api/commands.md` from the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.cli.api import api_pages
from luthier.cli.describe import body, facts, settings_of
from luthier.cli.markdown import line, row
from luthier.cli.source import axes
from luthier.cli.usage import reference
from luthier.core.contracts.component import Component, find, names
from luthier.core.families import DATA_FAMILIES, FAMILIES
from luthier.core.public_names import PUBLIC
from luthier.methods.recipe import read_recipe, recipe_files

ROOT = Path("docs")
METHODS = Path("methods.md")
COMMANDS = Path("api/commands.md")
REMAKE = "python -m luthier.cli.docs"
HEAD = f"""# Methods

Written from the source by `{REMAKE}`; edit the methods' files, not this one. What decides which parameters are trained
(forms, initialisations, ranks, updates) is grouped by the families of a survey of parameter-efficient fine-tuning
(Prottasha et al. 2025, arXiv 2504.14117), and what makes rows by those of a survey of instruction tuning (Zhang et al.
2023, arXiv 2308.10792); `luthier list --family selective` lists one.
"""


def markdown() -> str:
    """Returns the whole page: a table for each axis, every component, the recipes."""
    parts = [HEAD]
    for axis, question in axes().items():
        found = [find(axis, name) for name in names(axis)]
        if found:
            parts += [f"## {axis.capitalize()}: {question}\n", *_overviews(found)]
            for cls in found:
                parts += _section(axis, cls)
    parts += ["## Recipes: settings of which paper?\n", *_recipes()]
    return "\n".join(parts).rstrip() + "\n"


def _overviews(found: Sequence[type[Component]]) -> Iterator[str]:
    """A table, or one for each family that is met on the axis."""
    told = {**FAMILIES, **DATA_FAMILIES}
    for family in ("", *told):
        if some := [cls for cls in found if cls.family == family]:
            yield from ([f"**{family.capitalize()}** ({told[family]}):\n"] if family else [])
            yield from (*_overview(some), "")


def _overview(found: Sequence[type[Component]]) -> Iterator[str]:
    yield from row("name", "equation", "paper")
    for cls in found:
        yield line(f"[{cls.name()}](#{cls.name()})", cls.equation(), cls.paper)


def _section(axis: str, cls: type[Component]) -> Iterator[str]:
    yield from (f"### {cls.name()}\n", f"    {cls.equation()}\n", f"In Python: `{in_python(axis, cls)}`.\n")
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


def in_python(axis: str, cls: type[Component]) -> str:
    """Returns `lt.LoRA`, or `lt.ranks.EVA` where two axes have a method of that name."""
    alone = sum(cls.name() in names(each) for each in axes()) == 1 and cls.__name__ not in PUBLIC
    return f"lt.{cls.__name__}" if alone else f"lt.{axis}.{cls.__name__}"


def _recipes() -> Iterator[str]:
    yield "`luthier explain NAME` shows every setting with whose it is; the last column has those that are ours.\n"
    yield from row("name", "description", "paper", "settings from", "ours")
    for file in recipe_files().values():
        recipe = read_recipe(str(file))
        ours = ", ".join(f"`{key}`" for key in recipe.ours)
        yield line(recipe.name, recipe.description, recipe.paper, recipe.source, ours)


def pages() -> dict[Path, str]:
    """Returns `{file below docs/: its text}` of everything that is written from the code."""
    api = {Path("api", name): text for name, text in api_pages().items()}
    return {METHODS: markdown(), COMMANDS: reference()} | api


def main(arguments: Sequence[str]) -> None:
    """Writes the pages below the folder given, docs by default."""
    root = Path(arguments[0]) if arguments else ROOT
    for file, text in pages().items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
