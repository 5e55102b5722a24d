"""Whose words: names, docstrings, messages, help and docs use the field's terms, and first lines are sentences."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import luthier
from luthier.cli import main
from luthier.cli.parse import commands
from luthier.core.public_names import PUBLIC

ROOT = Path(luthier.__file__).parent
PROJECT = ROOT.parents[1]

NAMES = {
    r"face": "kind of edit (edit_kind), edit function",
    r"slots?": "tuner layer",
    r"spots?": "parameter reference, positions",
    r"homes?": "container",
    r"calm|loud": "eval_only and train_only hyper-parameters; eval and train mode",
    r"settled?": "cached decode plan, resolved",
    r"arrange(ment)?": "per-row assignment (assign_rows, RowAssignment)",
    r"twins?": "reference implementation, counterpart",
    r"lean|fatten": "memory-saving forward; patch, unpatch",
    r"purse": "budget",
    r"ground": "targets, inputs",
    r"course": "training plan",
    r"rehearse": "dry_run",
    r"framed": "training_context",
    r"kinship|strangers?": "base similarity, unrelated base",
    r"upright|stair|dear": "y axis, step line, expensive",
    r"remember": "update_state",
}
"""What a part of a name (between underscores and capitals) may not be, and what the field says."""

ALLOWED = {
    ("cli/commands/compare.py", "settled"),
    ("comparing/methods.py", "settled"),
    ("core/files.py", "settled"),
    ("core/contracts/component.py", "homes"),
    ("core/contracts/component.py", "home"),
    ("data/shown.py", "settled"),
    ("methods/statistics/pca.py", "settled"),
    ("serving/http/page.py", "face"),
}
"""(file, part of a name) that means something else there: the user's home, statistics and data that have settled."""

LEFT = "longer|more|such|keys|one|way|room|place|need|reason|use|limit"
WORDS = {
    r"\btwins?\b": "reference implementation (of a kernel), copy, counterpart",
    r"\btrained numbers?\b": "trainable parameters",
    r"\bnumber formats?\b": "dtype",
    r"\bpacked \(?(bases?|weights?|layers?|model)\b": "quantised",
    r"\bspread (over|across) (the |several )?processes\b": "sharded",
    r"(?-i:\(none: )": "Default: …",
    r"\bnobody (says|said|told|has said)\b": "by default, where none is given",
    r"\bbut for\b": "except",
    r"\b(line|prompt|object|entry|row|loss|folder) a (line|step|run|round|method|seed|class|row)\b": "one … per …",
    r"\bfile of ours\b|\b(adapter|one) of ours\b": "of Luthier",
    rf"(?<!there )(?<!where )(?<!here )\bis no (?!{LEFT})[a-z]+": "is not a …",
    r"\bpurse\b|\bkinship\b|\bstrangers\b": "budget; base similarity; unrelated base",
    r"\bdear(er|est)?\b|\bstairs?\b": "expensive; step line",
    r"\bsettled steps?\b|\bsettles? (it|its own) (once|steps?)\b": "cached decode plan",
    r"\bthe start is taken off\b|\bstarts? can be taken off\b": "subtracted (W_res = W - s B₀ A₀)",
    r"\bis made again\b|\bmakes? \w+ again\b": "recomputed",
    r"\bfour faces\b|\bface of a form\b|\bown face\b": "kind of edit, edit function",
    r"\bslots? (of|that|on)\b|\ba slot\b": "tuner layer",
    r"\bhow .{0,12} goes on\b": "how to continue",
}
"""What prose may not say, and what the field says."""

SOURCES = sorted(path for path in ROOT.rglob("*.py"))
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "bench" / "README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
]
EQUATIONS = re.compile(r"^(methods/(?!_)\w+|interop/(formats|sources))/[a-z]\w*\.py$")
"""Files whose classes open with their equation."""
MATHS = re.compile(r"^(methods|kernels|core/numerics|combining|comparing)/")
"""Packages in which a function or a field may open with a formula or with its shape."""


def place(path: Path) -> str:
    return path.relative_to(ROOT if path.is_relative_to(ROOT) else PROJECT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def parts(name: str) -> list[str]:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def named(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of every class, function, argument, field and attribute that a file defines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.lineno, node.target.id


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string and comment of a Python file."""
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def documented(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(line, kind, name, docstring) of the module, of public classes and functions, and of public fields."""
    yield 1, "module", place(path), ast.get_docstring(tree(path)) or ""
    pending: list[ast.Module | ast.ClassDef] = [tree(path)]
    while pending:
        parent = pending.pop()
        for node, after in zip(parent.body, [*parent.body[1:], None], strict=True):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if doc := ast.get_docstring(node):
                    yield node.lineno, "class" if isinstance(node, ast.ClassDef) else "function", node.name, doc
                if isinstance(node, ast.ClassDef):
                    pending.append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
                if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str) and name[0] != "_":
                    yield after.lineno, "field", name, inspect.cleandoc(after.value.value)


def opening(doc: str) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(doc.split("\n\n")[0].split())


def banned(text: str) -> Iterator[tuple[int, str]]:
    for pattern, instead in WORDS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()), f"{match[0]!r}: the field says {instead}"


def test_names_are_the_fields():
    wrong = [
        f"{place(path)}:{line} {name}: the field says {instead}"
        for path in SOURCES
        for line, name in named(path)
        for part in parts(name)
        for pattern, instead in NAMES.items()
        if re.fullmatch(pattern, part) and (place(path), part) not in ALLOWED
    ]
    assert not wrong, "\n".join(wrong)


def test_docstrings_messages_and_comments_are_in_the_fields_words():
    wrong = [
        f"{place(path)}:{line + below} {told}"
        for path in SOURCES
        for line, text in prose(path)
        for below, told in banned(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=place)
def test_pages_are_in_the_fields_words(path):
    wrong = [f"{place(path)}:{line + 1} {told}" for line, told in banned(path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_is_in_the_fields_words(capsys, name):
    assert main([name, "--help"]) == 0
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert f"luthier {name}" in shown
    wrong = [told for _, told in banned(shown)]
    assert not wrong, "\n".join(wrong)


def is_sentence(line: str, kind: str, file: str) -> bool:
    """Whether a docstring opens as it should: a capital (or code), words, a full stop; equations where methods are."""
    if kind == "class" and EQUATIONS.match(file):
        return True
    starts = bool(re.match(r"[A-Z`]", line)) or (kind in ("function", "field") and bool(MATHS.match(file)))
    words = re.findall(r"[^\W\d_]{2,}", line)
    return starts and line.endswith((".", ":")) and len(words) >= 2


@pytest.mark.parametrize("path", SOURCES, ids=place)
def test_docstrings_open_with_a_sentence(path):
    found = [(line, kind, name, opening(doc)) for line, kind, name, doc in documented(path)]
    wrong = [f"{place(path)}:{n} {name}: {doc!r}" for n, k, name, doc in found if not is_sentence(doc, k, place(path))]
    assert not wrong, "\n".join(wrong)


def functions() -> dict[str, str]:
    """{public name: docstring} of the functions of `lt.*`, read from source."""
    found = {}
    for name, (module, own) in PUBLIC.items():
        file = ROOT.parent.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        for node in tree(file).body:
            if isinstance(node, ast.FunctionDef) and node.name == own:
                found[name] = ast.get_docstring(node) or ""
    return {name: doc for name, doc in sorted(found.items()) if doc}


@pytest.mark.parametrize("name", functions())
def test_public_functions_say_what_they_do(name):
    """The first word is a verb: `lt.merge` merges, `lt.features` returns."""
    first = functions()[name].split(" ")[0]
    assert re.fullmatch(r"[A-Z][a-z]+s", first), f"lt.{name}: {first!r} is not a verb in the third person"
