"""What the pages name is there: files, modules, links, public names, commands with their flags; README's code runs."""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from bench._registry import benchmarks

import luthier as lt
from luthier.cli.parse import commands, parse
from luthier.core.contracts.component import axes, names
from luthier.methods.recipe import recipe_files
from support.architectures import ARCHITECTURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WRITTEN = {ROOT / "docs" / "methods.md", *ROOT.glob("docs/api/*.md")}
"""Pages that are written from the code, which quotes the files of papers' authors."""
DOCS = {*ROOT.glob("docs/*.md"), *ROOT.glob("docs/howto/*.md")} | WRITTEN
PAGES = sorted({*ROOT.glob("*.md"), *DOCS, ROOT / "bench" / "README.md"} - WRITTEN)
PLACES = ("", "src", "src/luthier", "docs", "bench")
"""What a path on a page may start from."""
OTHERS = {"hospitals.py", "luthier_vera/forms/vera.py", "fixed_a.py", "findings/NAME.sh", "_file.py"} | {
    "judges.py",
    "critics.py",
    "file.py",
}
"""Files of a reader's own, in examples."""
TITLE = re.compile(r"title=\"\S+\"")
HISTORY = {"LOG.md", "CHANGELOG.md"}
"""Pages that also name what is gone."""
SHELL = re.compile(r"^(?: {4}|\$ )?(luthier .*)$", re.M)
INLINE = re.compile(r"`(luthier [^`]*)`")


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


EACH_PAGE = pytest.mark.parametrize("path", PAGES, ids=shown)


@functools.cache
def files() -> set[str]:
    """The names of the repository's files."""
    inside = (ROOT / each for each in ("src", "tests", "bench", "docs", "examples", "findings"))
    return {name for folder in inside for _, _, held in os.walk(folder) for name in held} | {
        file.name for file in ROOT.iterdir()
    }


def exists(name: str) -> bool:
    if "/" not in name:
        return name in files()
    return any((ROOT / place / name).exists() for place in PLACES)


@EACH_PAGE
def test_files_that_a_page_names_exist(path):
    found = set(re.findall(r"(?<![\w/.<-])[\w./-]*\w\.(?:py|sh)\b", TITLE.sub("", page(path)))) - OTHERS
    missing = sorted(name for name in found if not exists(name.removeprefix("./")))
    assert not missing or path.name in HISTORY, missing


@EACH_PAGE
def test_folders_that_a_page_names_exist(path):
    found = set(re.findall(r"`((?:src|tests|bench|docs|findings|examples|core|methods|interop)/[\w./-]*)`", page(path)))
    missing = sorted(name for name in found - OTHERS if not exists(name))
    assert not missing or path.name in HISTORY, missing


@pytest.mark.parametrize("path", sorted({*PAGES, *WRITTEN}), ids=shown)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page(path)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = path.parent / target if target else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them, and of what mkdocstrings puts there."""
    headings = re.findall(r"^#+ (.*)$", page(file), re.M)
    plain = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return plain | set(re.findall(r"^::: (\S+)$", page(file), re.M))


@EACH_PAGE
def test_modules_that_a_page_names_exist(path):
    for name in set(re.findall(r"\bluthier(?:\.\w+)+", page(path))) - {"luthier.methods", "luthier.core"}:
        assert resolved(name), name


def resolved(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one defines or imports; nothing is imported."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        at = ROOT / "src" / Path(*parts[:end])
        file = at / "__init__.py" if at.is_dir() else at.with_suffix(".py")
        if file.is_file():
            text = page(file) + (page(file.with_suffix(".pyi")) if file.with_suffix(".pyi").is_file() else "")
            return end == len(parts) or re.search(rf"\b{parts[end]}\b", text) is not None
    return False


@EACH_PAGE
def test_public_names_that_a_page_uses_exist(path):
    if path.name in HISTORY:
        return
    made_up = {"lt.VeRA"}  # of a package in an example
    for name in set(re.findall(r"\blt(?:\.[A-Za-z_]\w*)+", page(path))) - made_up:
        held = lt
        for part in name.split(".")[1:]:
            held = getattr(held, part)


def test_every_recipe_stands_beside_its_paper():
    named = re.findall(r"; recipes? ([a-z0-9-]+(?:, [a-z0-9-]+)*)", page(ROOT / "docs" / "papers.md"))
    assert {name for each in named for name in each.split(", ")} == set(recipe_files())


# --- commands --------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    """The command lines in a page's blocks; a backslash goes on in the next line."""
    text = page(path).replace("\\\n", " ")
    return [part.strip() for line in SHELL.findall(text) for part in line.split("; ") if part.startswith("luthier ")]


@pytest.mark.parametrize("line", sorted({line for path in PAGES if path.name not in HISTORY for line in lines(path)}))
def test_a_command_line_is_one(line, tmp_path, monkeypatch):
    """It is parsed and not run; placeholders such as … are left out. run.toml is the page's own."""
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "…"]
    if words[-1] in commands():
        words.append("--help")
    if "vera" in words or "size" in words[:1] or "fixed_a" in words:
        pytest.skip("a method of an example")
    if "run.toml" in words:
        (text,) = re.findall(r"^```toml\n(.*?)^```$", page(ROOT / "docs" / "commands.md"), re.M | re.S)
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DATA", "/data")
    parse(words)


@EACH_PAGE
def test_commands_and_flags_in_a_sentence_exist(path):
    known = commands()
    for text in INLINE.findall(page(path)):
        command = text.split()[1] if len(text.split()) > 1 else ""
        if command[:1].islower() and command != "size":
            assert command.rstrip(";") in known, text


def test_benchmarks_that_pages_name_exist():
    named = {name for path in PAGES for name in re.findall(r"python -m bench ([a-z][\w-]*)", page(path))}
    assert named and named <= set(benchmarks())


# --- lists that a page gives ------------------------------------------------------------------------


def test_methods_in_the_table_of_commands_are_methods():
    everything = {name for axis in axes() for name in names(axis)} | {"poly"}
    rows = [row.split(" | ") for row in page(ROOT / "docs" / "commands.md").splitlines() if row.count(" | ") == 2]
    cells = [re.sub(r"\(.*?\)", "", row[2].rstrip(" |")) for row in rows if row[0].endswith("?")]
    found = {name.strip() for cell in cells for part in cell.split(",") for name in part.split(" and ")}
    assert len(cells) == 10 and found - {""} <= everything, found - everything


def below_docs() -> set[str]:
    """Every page of the site that lies in docs/: Markdown and notebooks."""
    return {str(file.relative_to(ROOT / "docs")) for kind in ("md", "ipynb") for file in ROOT.glob(f"docs/**/*.{kind}")}


def test_every_page_is_in_the_index():
    index = set(re.findall(r"\]\(([\w./-]+)\)", page(ROOT / "docs" / "index.md")))
    assert below_docs() - index - {"index.md"} == {
        f"api/{file.name}" for file in ROOT.glob("docs/api/*.md") if file.stem not in ("index", "commands")
    }


def test_every_page_is_in_the_sites_navigation():
    """And every entry is a page, those beside docs/ under the names that docs/hooks.py gives them."""
    nav = page(ROOT / "mkdocs.yml").partition("\nnav:\n")[2]
    named = re.findall(r"^ +- [^:\n]+: (\S+)$", nav, re.M)
    beside = dict(re.findall(r'^    "([\w/.]+)": "(\S+)",$', page(ROOT / "docs" / "hooks.py"), re.M))
    assert sorted(named) == sorted({*below_docs(), *beside.values()})
    assert all((ROOT / file).is_file() for file in beside)


def test_extras_in_the_readme_are_all_of_them():
    (listed,) = re.findall(r"# extras: (.*)", page(ROOT / "README.md"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(listed.split(", ")) == set(project["optional-dependencies"]) - {"dev"}


def test_the_readmes_example_runs(monkeypatch, tmp_path):
    """On a tiny model in place of the real one; the base comes out bit for bit."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", page(ROOT / "README.md"), re.M | re.S)
    made: list[torch.nn.Module] = []

    class Loaded:
        @property
        def model(self):
            made.append(ARCHITECTURES["llama"].build())
            return made[-1]

    monkeypatch.setattr(lt, "model", lambda name: Loaded(), raising=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    first, second = made
    plain = ARCHITECTURES["llama"].build().state_dict()
    assert all(torch.equal(first.state_dict()[key], tensor) for key, tensor in plain.items())
    assert lt.trainable(second, count=True) > 0
    assert len(page(ROOT / "README.md").splitlines()) <= 75
