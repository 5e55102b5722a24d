"""Names that no file system takes are told in a line, whoever is given them; only one place makes paths of names."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

import pytest

import luthier as lt
from luthier import data, models
from luthier.comparing.study import read_study
from luthier.core.files import located
from luthier.core.paths import path_of
from luthier.examining.check.gates import read_gates
from luthier.methods.recipe import read_recipe
from luthier.training.folder import read_run
from luthier.training.runfile import read_run_file
from luthier.training.stages.plan import read_plan
from support.architectures import ARCHITECTURES

ROOT = Path(lt.__file__).parent
LONG = "a" * 300
NAMES = {
    "long": LONG,
    "deep": f"b/{LONG}",
    "null": "a\0b",
    "half": "a\ud800",
    "loop": "loop/a",
    "nobody": "~nobody.here",
}
TAKEN = {
    "rows": data.load,
    "model": models.load,
    "configuration": models.config_of,
    "adapter": lambda name: lt.load(adapted(), name),
    "import": lambda name: lt.import_adapter(name, "out", base=adapted()),
    "run": lambda name: lt.train(lt.Run("model", "rows.jsonl", lt.LoRA(), out=name), progress=False),
    "run's folder": read_run,
    "run file": read_run_file,
    "plan": read_plan,
    "study": read_study,
    "recipe": read_recipe,
    "gates": read_gates,
}


@functools.cache
def adapted() -> Any:
    model = ARCHITECTURES["llama"].build()
    lt.attach(model, lt.LoRA(rank=2), where="q_proj")
    return model


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_no_file_system_takes_is_told(kind, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for ending in ("", ".json", ".toml"):
        with pytest.raises(lt.LuthierError) as told:
            TAKEN[what](NAMES[kind] + ending)
        assert "\n" not in str(told.value) and len(str(told.value)) < 1500


@pytest.mark.parametrize("kind", [name for name in NAMES if name != "deep"])
def test_nothing_is_written_under_such_a_name(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(lt.LuthierError):
        lt.save(adapted(), NAMES[kind])
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_paths_are_spelled_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/a") == path_of(Path("~/a")) == tmp_path / "a"
    (tmp_path / "a").write_text("")
    assert path_of("~/a/b") == tmp_path / "a" / "b"  # what is wrong there is the caller's to say


def test_a_name_in_a_file_of_gates_may_be_anything(tmp_path):
    held = "held.j" + "9" * 300
    (tmp_path / "gates.toml").write_text(f'[[gate]]\nby = "held_loss"\ndata = "{held}"\n')
    assert read_gates(tmp_path / "gates.toml")["held_loss"].data == held == located(held, tmp_path)


def test_one_place_makes_paths_of_names():
    """`Path(name).expanduser()` and what is asked of it raise `OSError`, `ValueError` and `RuntimeError` of names."""
    bare = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "expanduser" and ast.unparse(node.value) != "os.path"
    }
    assert {each.partition(":")[0] for each in bare} == {"core/paths.py"}
