"""The pages that are written from the code are what the code says now, and every public name is on one of them."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import pytest

from luthier.cli import docs
from luthier.cli.docs import METHODS, REMAKE, ROOT, main
from luthier.cli.parse import commands
from luthier.cli.stubs import stubs

DOCS = Path(__file__).parents[2] / ROOT


pages = functools.cache(docs.pages)


@pytest.fixture(autouse=True)
def without_plugins(monkeypatch):
    monkeypatch.delenv("LUTHIER_PATH", raising=False)


def test_the_committed_pages_are_current():
    made = pages()
    for file, text in made.items():
        assert (DOCS / file).read_text(encoding="utf-8") == text, f"stale: run `{REMAKE}` and commit docs/{file}"
    assert {file.relative_to(DOCS) for file in DOCS.glob("api/*")} == set(made) - {METHODS}


def test_a_bar_in_a_cell_does_not_end_it():
    for page in pages().values():
        rows = [row.replace("\\|", "") for row in page.splitlines() if row.startswith("| ")]
        assert all(row.count("|") in (3, 4, 5, 6) for row in rows)


def test_they_are_written_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "pages", pages)
    main([str(tmp_path / "deep")])
    assert (tmp_path / "deep" / METHODS).read_text(encoding="utf-8") == pages()[METHODS]


def test_every_public_name_has_a_page():
    """A function or a class on the pages of `lt.*`, a method or an axis on the page of methods."""
    stub = stubs()[Path("__init__.pyi")]
    public = set(re.findall(r" as (\w+)$", stub, re.M)) - {"__version__"}
    texts = pages()
    told = set(re.findall(r"^ +heading: lt\.(\w+)$", "\n".join(texts.values()), re.M))
    told |= set(re.findall(r"^In Python: `lt\.(\w+)`\.$", texts[METHODS], re.M))
    told |= {axis.lower() for axis in re.findall(r"^## (\w+):", texts[METHODS], re.M)}
    assert public <= told, f"no page has {sorted(public - told)}"


def test_every_name_on_a_page_has_a_sentence():
    for file, text in pages().items():
        rows = re.findall(r"^\| \[`lt\.(\w+)`\]\(\S+\) \| (.*) \|$", text, re.M)
        assert all(len(sentence) > 5 for _, sentence in rows), (file, rows)


def test_every_command_and_flag_is_on_the_page():
    text = pages()[Path("api/commands.md")]
    for name, cls in commands().items():
        assert f"\n## luthier {name}\n" in text
        flags = [field.name for field in dataclasses.fields(cls) if field.kw_only]
        assert all(f"`--{flag.replace('_', '-')}`" in text for flag in flags), name


def test_every_command_that_a_page_names_is_there():
    for file in DOCS.rglob("*.md"):
        named = set(re.findall(r"`luthier ([a-z_]+)", file.read_text(encoding="utf-8")))
        assert named <= set(commands()), f"{file.name}: {', '.join(sorted(named - set(commands())))}"


def test_the_seven_stages_stand_in_one_table():
    told = {
        file.name: re.findall(r"^\| (\d)\.? \w.*`luthier", file.read_text("utf-8"), re.M) for file in DOCS.glob("*.md")
    }
    assert {name: found for name, found in told.items() if found} == {"monitor.md": list("1234567")}
