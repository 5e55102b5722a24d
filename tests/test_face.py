"""The public interface: `lt.*` is complete, typed and documented, and its stubs are what the registries say."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import GenericAlias, ModuleType, UnionType

import pytest

import luthier as lt
from luthier.cli.stubs import REMAKE, ROOT, main, stubs
from luthier.core.contracts.component import Component, axes, find, names
from luthier.core.public_names import PUBLIC

USER = """
import luthier as lt
from torch import nn


def use(model: nn.Module) -> None:
    reveal_type(lt.attach)  # attach
    reveal_type(lt.WeGeFT(rank=4).rank)  # rank
    reveal_type(lt.WeGeFT().share)  # share
    result = lt.train(model="a", data="b", form=lt.LoRA(rank=2))
    reveal_type(result)  # result
    reveal_type(result.eval_loss)  # loss
    lt.train("a", [{"text": "b"}], method="lora", update="lisa", epochs=2, out="c")
    lt.train("a", "b", method="lora", epoch=2)  # unknown field
    lt.train("a", "b", method="lora", steps="2")  # a field's type
    reveal_type(lt.trainable(model, count=True))  # count
    reveal_type(lt.ranks.EVA())  # axis
    reveal_type(lt.select(model, "all-linear")[0])  # site
    lt.attach(model, lt.LoRA(), where="q_proj", name="second")
    print(lt.nonsense)  # unknown
    lt.forms.Nonsense()  # unknown form
    lt.WeGeFT(rnk=4)  # unknown setting
    lt.attach(model, "lora")  # a word
    lt.EVA()  # on two axes
"""
FOUND = {
    "attach": r"\(model: Module, form: Form, where: .*name: str = \"default\".*\) -> Module",
    "rank": "int",
    "share": r"str \| None",
    "result": "Result",
    "loss": r"float \| None",
    "count": "int",
    "axis": "EVA",
    "site": "Site",
}
WRONG = {"unknown", "unknown form", "unknown setting", "a word", "on two axes", "unknown field", "a field's type"}
AUTHOR = '''
from collections.abc import Mapping
from dataclasses import dataclass

import luthier as lt
from torch import Tensor


@dataclass(frozen=True)
class Rescale(lt.Form):
    """y' = s g ⊙ y"""

    size: float = 1.0
    """The scale s."""

    def init(self, site: lt.Site, stats: lt.Stats) -> dict[str, Tensor]:
        return {"g": lt.kaiming(1, site.d_out)}

    def post(self, p: lt.Params, x: Tensor, y: Tensor) -> Tensor:
        return lt.dropout(y, 0.1) * p["g"] * lt.rank_scale(self.size, 4, "lora")


@dataclass(frozen=True)
class Halved(lt.Update):
    """g' = g / 2"""

    def update(self, grads: Mapping[str, Tensor], state: dict[str, Tensor], group: lt.ParameterGroup) -> lt.Params:
        return 0  # result


Rescale(size="large")  # setting
'''


def pyright(folder: Path, source: str) -> dict[str, list[dict]]:
    """What pyright says of a user's file, by the comment at the end of the line."""
    pytest.importorskip("pyright")
    (folder / "sample.py").write_text(source, encoding="utf-8")
    config = {"extraPaths": [str(ROOT.parent)], "typeCheckingMode": "basic", "include": ["sample.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    lines, found = source.splitlines(), {}
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        line = lines[each["range"]["start"]["line"]]
        found.setdefault(line.rpartition("  # ")[2].strip(), []).append(each)
    return found


def test_a_type_checker_finds_what_a_user_writes(tmp_path):
    told = pyright(tmp_path, USER)
    for key, pattern in FOUND.items():
        (only,) = told.pop(key)
        assert re.search(f'is "{pattern}"', only["message"].replace("\n", " ")), only["message"]
    assert set(told) == WRONG, told
    assert all(each["severity"] == "error" for found in told.values() for each in found)


def test_a_type_checker_finds_what_an_author_writes(tmp_path):
    assert set(pyright(tmp_path, AUTHOR)) == {"result", "setting"}


def test_the_committed_stubs_are_current():
    for file, text in stubs().items():
        assert (ROOT / file).read_text(encoding="utf-8") == text, f"{file} is stale: run `{REMAKE}` and commit it"
    assert {file.relative_to(ROOT) for file in ROOT.rglob("*.pyi")} == set(stubs())


def test_stubs_are_written_where_they_are_told(tmp_path):
    main([str(tmp_path)])
    assert (tmp_path / "__init__.pyi").read_text(encoding="utf-8") == stubs()[Path("__init__.pyi")]


def stubbed() -> dict[str, object]:
    """`{name: what it stands for}` of everything that the stub of the package names."""
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = {}
    for node in imports:
        (alias,) = node.names
        module = importlib.import_module(str(node.module))
        found[str(alias.asname)] = getattr(module, alias.name, None) or importlib.import_module(
            f"{node.module}.{alias.name}"
        )
    return found


STUBBED = stubbed()


def test_the_stub_names_what_the_package_has():
    for name, stands_for in STUBBED.items():
        assert getattr(lt, name) is stands_for, name
    assert {*PUBLIC, *axes()} <= set(STUBBED)
    every = {find(axis, name) for axis in axes() for name in names(axis)}
    left_out = every - {each for each in STUBBED.values() if isinstance(each, type)}
    by_name: dict[str, int] = {}
    for cls in every:
        by_name[cls.name()] = by_name.get(cls.name(), 0) + 1
    assert all(by_name[cls.name()] > 1 for cls in left_out), left_out


def test_no_public_name_is_that_of_a_package():
    """A package becomes an attribute once it is imported, and would take the name's place."""
    assert not {path.stem for path in ROOT.iterdir()} & {*PUBLIC, *axes()}


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(AttributeError, match="no attribute 'atach'; did you mean 'attach'"):
        _ = lt.atach
    with pytest.raises(AttributeError, match=r"write luthier.inits.EVA or luthier.ranks.EVA"):
        _ = lt.EVA
    assert set(axes()) | set(PUBLIC) <= set(dir(lt))


# --- documented ------------------------------------------------------------------------------------


def doc_of(name: str) -> str:
    """The docstring of a public name; of a constant or an alias, the string below its assignment."""
    value = STUBBED[name]
    if (isinstance(value, type | ModuleType) and not isinstance(value, GenericAlias)) or inspect.isfunction(value):
        return inspect.cleandoc(value.__doc__ or "")
    module, own = PUBLIC[name]
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for node, after in itertools.pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else []
        written = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if written and any(isinstance(t, ast.Name) and t.id == own for t in targets):
            return inspect.cleandoc(str(after.value.value))
    return ""


@pytest.mark.parametrize("name", sorted(set(STUBBED) - {"__version__"}))
def test_every_public_name_is_documented(name):
    """The first line is a sentence; of a method, its equation."""
    first = doc_of(name).split("\n")[0]
    value = STUBBED[name]
    method = isinstance(value, type) and issubclass(value, Component)
    if method and (name not in PUBLIC or ".methods." in value.__module__):
        assert first, f"lt.{name} has no equation"
    else:
        assert re.match(r"[A-Z0-9`'(].*[.:]$", first), f"lt.{name}: {first!r} is not a sentence"


# --- complete --------------------------------------------------------------------------------------

OPEN = ("luthier.core.contracts.", "luthier.core.errors", "luthier.core.sites.", "luthier.core.numerics.delta")
"""What authors of methods write against."""
PLUMBING = {"attributes", "plugin_folders"}
"""What the packages of axes are made with."""


def imported_by_methods() -> Iterator[tuple[str, str, str]]:
    """(file, module, name) of what the files of methods import from what authors write against."""
    for file in sorted(ROOT.glob("methods/*/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OPEN):
                yield from ((str(file.relative_to(ROOT)), str(node.module), alias.name) for alias in node.names)


def test_a_method_can_be_written_with_public_names_alone():
    public = list(STUBBED.values())
    missing = {
        f"{module}.{name} ({file})"
        for file, module, name in imported_by_methods()
        if name not in PLUMBING and getattr(importlib.import_module(module), name) not in public
    }
    assert not missing, "\n".join(sorted(missing))


def classes_in(hint: object) -> Iterator[type]:
    """The classes of Luthier that an annotation names."""
    if isinstance(hint, type) and not isinstance(hint, GenericAlias) and hint.__module__.startswith("luthier"):
        yield hint
    for part in typing.get_args(hint):
        yield from (found for each in (part if isinstance(part, list) else [part]) for found in classes_in(each))


def signatures() -> Iterator[tuple[str, typing.Any]]:
    """(name, function) of every public function, and of the public methods of public classes."""
    for name in PUBLIC:
        value = STUBBED[name]
        if inspect.isclass(value) and not isinstance(value, GenericAlias | UnionType):
            methods = {key: each for key, each in vars(value).items() if inspect.isfunction(each) and key[0] != "_"}
            yield from ((f"{name}.{key}", each) for key, each in methods.items())
        elif inspect.isfunction(value):
            yield name, value


def names_for_annotations(module: str) -> dict[str, typing.Any]:
    """The names that a module's annotations may use: its own, and those it imports for type checkers alone."""
    loaded = importlib.import_module(module)
    names = dict(vars(loaded))
    for node in ast.parse(inspect.getsource(loaded)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), names)
    return names


def test_what_public_functions_take_and_give_is_public():
    """So a user can name the type of each argument and result."""
    public = [each for each in STUBBED.values() if isinstance(each, type)]
    missing = set()
    for name, function in signatures():
        hints = typing.get_type_hints(function, names_for_annotations(function.__module__))
        found = {cls for hint in hints.values() for cls in classes_in(hint)}
        missing |= {f"lt.{name}: {cls.__module__}.{cls.__name__}" for cls in found if cls not in public}
    assert not missing, "\n".join(sorted(missing))
