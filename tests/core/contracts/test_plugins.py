"""Methods from elsewhere: an installed package with an entry point, and folders of LUTHIER_PATH."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import fresh
from support.cli_tools import ROWS, save_llama, write_rows

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "luthier-gates"
version = "1.0"

[project.entry-points."luthier.methods"]
gates = "luthier_gates.methods"

[tool.setuptools]
packages = [
    "luthier_gates", "luthier_gates.methods", "luthier_gates.methods.forms", "luthier_gates.methods.recipes",
    "luthier_gates.methods.commands",
]

[tool.setuptools.package-data]
"luthier_gates.methods.recipes" = ["*.toml"]
"""
FORM = '''
"""Gates: a form in a package of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import ones

import luthier as lt

from ..._start import START


@dataclass(frozen=True)
class OutGate(lt.Form):
    """y' = (1 + s g) ⊙ y"""

    paper = "nobody 2031, arXiv 3101.00003"
    where = "o_proj"

    size: float = 2.0
    """The scale s."""

    def init(self, site, stats):
        return {"g": START * ones(site.d_out)}

    def post(self, p, x, y):
        return y * (1 + self.size * p["g"])
'''
COMMAND = '''
"""`luthier gates`."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.cli.parse import Command, Given


@dataclass(frozen=True)
class Gates(Command):
    """Say how many gates there are."""

    examples = ("luthier gates --times 2",)

    times: int = field(default=1, kw_only=True)
    """How often it is said."""

    def run(self, given: Given) -> None:
        print(*["gates"] * self.times)
'''
RECIPE = 'description = "gates of a third party"\npaper = "nobody 2031"\nmethod = "out_gate"\n'
CHOICE = '''
"""First: a selection of one file."""

from dataclasses import dataclass

import numpy as np

from luthier.core.contracts import selection

BASE = next(v for v in vars(selection).values() if isinstance(v, type) and "score" in vars(v))


@dataclass(frozen=True)
class First(BASE):
    """score = - row"""

    targeted = False

    def score(self, pool):
        return -np.arange(len(pool.examples))
'''


def built(project: Path, into: Path) -> Path:
    """The project's wheel, unpacked as pip does."""
    package = project / "luthier_gates"
    (package / "methods" / "forms").mkdir(parents=True)
    (package / "methods" / "recipes").mkdir()
    (package / "methods" / "commands").mkdir()
    (package / "methods" / "commands" / "gates.py").write_text(COMMAND, encoding="utf-8")
    (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (package / "__init__.py").write_text("raise_if_imported = True\n", encoding="utf-8")
    (package / "_start.py").write_text("START = 0\n", encoding="utf-8")
    (package / "methods" / "forms" / "out_gate.py").write_text(FORM, encoding="utf-8")
    (package / "methods" / "recipes" / "gated.toml").write_text(RECIPE, encoding="utf-8")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(into)
    return into


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that finds the package of a third party."""
    site = built(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site"))
    return environment(site)


def environment(site: Path, **more: str) -> dict[str, str]:
    """The variables of a process that finds the packages in `site` beside those of this one."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def python(code: str, env: dict[str, str], *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=env, check=False)


def lines(code: str, env: dict[str, str]) -> list[str]:
    done = python(code, env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


USE = """
import json, sys
import luthier as lt
from luthier.cli import main
llama, rows, run = sys.argv[1:]
assert lt.OutGate is lt.forms.OutGate and lt.OutGate(size=3).size == 3
from luthier_gates.methods.forms.out_gate import OutGate
assert OutGate is lt.OutGate
code = main(["train", llama, rows, "--method", "out_gate", "--size", "4", "--lr", "0.1", "--steps", "3", "--out", run])
assert code == 0
model = lt.load(lt.model(llama).model, run + "/adapter")
print(json.dumps({"trained": sum(float(p.detach().abs().sum()) for p in lt.trainable(model).values())}))
"""


def test_a_package_brings_a_method_that_trains(installed, tmp_path):
    llama, rows = save_llama(tmp_path / "llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    done = fresh.run("-c", USE, llama, rows, tmp_path / "run", env=installed)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["trained"] > 0
    spec = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert spec["parts"][0]["form"] == "out_gate" and spec["parts"][0]["settings"]["size"] == 4.0


def test_its_methods_are_listed_without_being_imported(installed):
    code = """
import sys
from luthier.cli import main
main(["list", "forms"])
print("luthier_gates" in sys.modules, "torch" in sys.modules)
"""
    *listed, last = lines(code, installed)
    assert last == "False False" and any("(1 + s g)" in line for line in listed)


def test_it_brings_a_command(installed):
    assert lines("from luthier.cli import main\nmain(['gates', '--times', '3'])", installed) == ["gates gates gates"]
    assert any(
        "Say how many gates there are." in line
        for line in lines("from luthier.cli import main\nmain(['--help'])", installed)
    )


def test_luthier_path_brings_a_command_and_a_broken_one_stays_out(tmp_path):
    folder = tmp_path / "commands"
    folder.mkdir()
    (folder / "doors.py").write_text(COMMAND.replace("Gates", "Doors"), encoding="utf-8")
    (folder / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    env = {**os.environ, "LUTHIER_PATH": str(tmp_path)}
    done = python("from luthier.cli import main\nmain(['doors'])", env)
    assert done.stdout == "gates\n" and f"{folder / 'broken.py'} is left out: ModuleNotFoundError" in done.stderr
    (folder / "train.py").write_text(COMMAND.replace("Gates", "Train"), encoding="utf-8")
    done = python("from luthier.cli import main\nsys.exit(main(['doors']))".replace("from", "import sys\nfrom", 1), env)
    assert done.returncode == 2 and "two commands are called train" in done.stderr


def test_its_recipes_are_found(installed):
    assert lines("from luthier.methods.recipe import read_recipe\nprint(read_recipe('gated').method)", installed) == [
        "out_gate"
    ]


def test_a_command_of_ours_looks_for_no_packages():
    code = """
import importlib.metadata
def none(**kwargs):
    assert "group" not in kwargs, kwargs
    return []
importlib.metadata.entry_points = none
import contextlib, io
from luthier.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["models", "--help"]) == 0
print("helped")
"""
    assert lines(code, dict(os.environ)) == ["helped"]


def test_a_package_that_is_gone_is_warned_of(tmp_path):
    info = tmp_path / "gone-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[luthier.methods]\ngone = gone_methods\n", encoding="utf-8")
    code = "from luthier.core.contracts.component import names\nprint(len(names('forms')) > 1)"
    done = python(code, environment(tmp_path))
    assert done.stdout.split() == ["True"] and "gone_methods" in done.stderr


def test_a_name_that_two_files_define_is_refused(installed, tmp_path):
    """Neither is taken in silence, whoever came first; other names stay."""
    (tmp_path / "forms").mkdir()
    for name in ("lora", "outgate"):
        (tmp_path / "forms" / f"{name}.py").write_text("x = 1\n", encoding="utf-8")
    code = """
from luthier.core.contracts.component import find
from luthier.core.errors import LuthierError
for name in ("lora", "out_gate"):
    try:
        find("forms", name)
    except LuthierError as error:
        print(error)
find("forms", "dora")
"""
    done = fresh.run("-c", code, env={**installed, "LUTHIER_PATH": str(tmp_path)})
    told = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(told) == 2 and all("is defined by" in line and str(tmp_path) in line for line in told)


def test_the_former_folder_of_selections_is_read_with_a_warning(tmp_path):
    for folder, name in (("data", "first"), ("selections", "second")):
        (tmp_path / folder).mkdir()
        source = CHOICE.replace("First", name.capitalize())
        (tmp_path / folder / f"{name}.py").write_text(source, encoding="utf-8")
    code = """
from luthier.core.contracts.component import find, names
assert {"first", "second"} <= set(names("selections"))
print(find("selections", "first").equation(), find("selections", "second").equation())
"""
    done = fresh.run("-c", code, env={**os.environ, "LUTHIER_PATH": str(tmp_path)})
    assert done.stdout == "score = - row score = - row\n", done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert "LuthierDeprecationWarning" in warning
    assert str(tmp_path / "data") in warning and str(tmp_path / "selections") in warning


@pytest.mark.parametrize("held", ["rows.jsonl", "_helpers.py"])
def test_a_folder_of_data_is_no_folder_of_selections(tmp_path, held):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / held).write_text("", encoding="utf-8")
    code = "from luthier.core.contracts.component import names\nprint(len(names('selections')))"
    done = python(code, {**os.environ, "LUTHIER_PATH": str(tmp_path)}, "-W", "error")
    assert done.returncode == 0, done.stderr


def test_the_command_line_shows_deprecations(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "first.py").write_text(CHOICE, encoding="utf-8")
    words = [sys.executable, "-m", "luthier", "list", "selections"]
    env = {**os.environ, "LUTHIER_PATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0 and "first" in done.stdout
    assert "warning" in done.stderr and "is deprecated" in done.stderr
