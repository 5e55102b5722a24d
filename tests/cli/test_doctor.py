"""`luthier doctor`: it names every extra and every variable of the environment, and what is wrong."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

import luthier
from luthier.cli import doctor, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


def test_it_shows_what_is_there(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == version("torch") and found["devices"][0]["name"] == "cpu"
    assert found["extras"]["serve"]["installed"] and "uvicorn" in found["extras"]["serve"]["packages"]
    assert not found["extras"]["federated"]["packages"].keys() - {"flwr"}
    assert main(["doctor"]) == 0
    assert "pip install 'luthier[NAME]'" in capsys.readouterr().out


def test_every_extra_says_what_it_brings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.BRINGS) == set(project["optional-dependencies"])


def test_every_variable_is_named_here_and_on_a_page():
    files = Path(luthier.__file__).parent.rglob("*.py")
    read = {name for file in files for name in re.findall(r"LUTHIER_[A-Z_]+", file.read_text(encoding="utf-8"))}
    assert read == set(doctor.VARIABLES)
    assert not [name for name in read if f"| `{name}` |" not in PAGE]


def test_no_other_programs_variable_is_read_in_silence():
    """Names with an underscore in the modules that read the environment, those of the system's figures aside."""
    read: set[str] = set()
    for file in Path(luthier.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        if any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in nodes):
            texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            read |= {text for text in texts if re.fullmatch(r"[A-Z0-9]+(_[A-Z0-9]+)+|[a-z]+_proxy", text)}
    assert {"OPENAI_API_KEY", "WORLD_SIZE", "https_proxy"} <= read
    assert not [name for name in sorted(read) if f"`{name}`" not in PAGE and not name.startswith("SC_")]


def test_other_versions_and_missing_packages_are_problems():
    wanted = ["torch>=99", "no-such-package>=1", "no-such-extra>=1; extra == 'x'", "pytest>=1"]
    wanted += ["torch>=98; extra == 'x'"]  # of which torch alone is not told again
    told = doctor.problems([Requirement(text) for text in wanted])
    assert told == [
        f"torch is {version('torch')}; Luthier wants torch>=99.",
        "no-such-package is missing; Luthier needs no-such-package>=1.",
    ]
