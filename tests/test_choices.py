"""The one declaration of a run's choices: whatever has them reads it, so one more is there everywhere at once."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import luthier as lt
from luthier.cli.commands.federate import Federate
from luthier.cli.commands.train import Train
from luthier.cli.parse import parse
from luthier.cli.source import field_docs
from luthier.comparing.methods import Method, described, redescribed
from luthier.comparing.study import Settings
from luthier.core.contracts.component import find, hints, names
from luthier.methods.choices import CHOICES, COMPONENTS, Choices, made, usual, written
from luthier.methods.recipe import Recipe
from luthier.training.command import command
from support import fresh
from support.tiny import save_model, sums, write_rows

AXIS = '"""Tolls: what a change is charged for."""\n\n' + (
    'from luthier.core.contracts.component import attributes\n\nAXIS = "what toll?"\n'
    '__getattr__ = attributes("tolls")\n'
)
CONTRACT = '''
"""The contract of a toll."""

from luthier.core.contracts.component import Component


class Toll(Component):
    """What a change is charged for."""
'''
TOLL = '''
"""A toll on the size of the change."""

from __future__ import annotations

from dataclasses import dataclass

import luthier as lt


@dataclass(frozen=True)
class Ridge(lt.Toll):
    """L + c |p|^2"""

    paper = "nobody"

    c: float = 0.5
    """The weight c."""
'''
FIELD = '''    toll: Toll | None = field(default=None, metadata=_of("tolls"))
    """What the change is charged for. Default: nothing."""
'''
USE = """
import json, sys
from pathlib import Path
import luthier as lt
from luthier.cli import main
from luthier.cli.parse import parse
from luthier.training import Run
from luthier.training.command import command

model, rows, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
ridge = lt.tolls.Ridge(c=0.25)
run = Run(model, rows, lt.LoRA(rank=2), toll=ridge)
assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
assert "--toll ridge --c 0.25" in command(run)

def parsed(*words):
    command, given = parse([*words])
    found = command.resolved(given)
    return found[0] if isinstance(found, tuple) else found

assert parsed("train", model, rows, "--method", "lora", "--rank", "2", "--toll", "ridge", "--c", "0.25") == run
assert parsed("federate", model, rows, "--toll", "ridge", "--c", "0.25").toll == ridge
(folder / "mine.toml").write_text('method = "lora"\\n[toll]\\nname = "ridge"\\nc = 0.25\\n')
assert parsed("train", model, rows, "--recipe", str(folder / "mine.toml")).toll == ridge
assert parsed("train", model, rows, "--recipe", str(folder / "mine.toml"), "--toll", "none").toll is None
assert parsed("train", model, rows, "--recipe", str(folder / "mine.toml"), "--c", "1").toll.c == 1

from luthier.comparing import read_study
from luthier.comparing.plan import method_of
(folder / "study.toml").write_text(
    f'models = ["{model}"]\\nmethods = ["lora"]\\n[data.d]\\ntrain = "{rows}"\\n'
    '[settings.lora]\\ntoll = {name = "ridge", c = 0.25}\\n')
assert method_of(read_study(folder / "study.toml"), "lora").toll == ridge

from luthier.cli.stubs import stubs
assert all("toll: Toll | None" in stubs()[Path(f"{verb}/run.pyi")] for verb in ("training", "federating"))
done = lt.train(model=model, data=rows, form=lt.LoRA(rank=2), toll=ridge, out=str(folder / "run"),
                training=lt.Training(steps=1, batch=2, eval_fraction=0), progress=False)
assert json.loads((done.folder / "run.json").read_text())["run"]["toll"]["settings"] == {"c": 0.25}
main(["train", "--toll", "ridge", "--help"])
"""


def insert(file: Path, before: str, text: str) -> None:
    """Writes `text` into a file, before what stands there once."""
    found = file.read_text(encoding="utf-8")
    assert found.count(before) == 1
    file.write_text(found.replace(before, text + before), encoding="utf-8")


def test_one_field_adds_an_axis_everywhere(tmp_path):
    """In a copy of the package: a contract with its public name, a folder for the axis, and one field of `Choices`."""
    package = tmp_path / "src" / "luthier"
    shutil.copytree(Path(lt.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "tolls").mkdir()
    (package / "methods" / "tolls" / "__init__.py").write_text(AXIS, encoding="utf-8")
    (package / "methods" / "tolls" / "ridge.py").write_text(TOLL, encoding="utf-8")
    (package / "core" / "contracts" / "toll.py").write_text(CONTRACT, encoding="utf-8")
    insert(
        package / "core" / "public_names.py",
        '    "core.contracts.selection"',
        '    "core.contracts.toll": "Toll",\n',
    )
    insert(package / "methods" / "choices.py", "    select: Selection", FIELD)
    imported = "    from luthier.core.contracts.toll import Toll\n"
    insert(package / "methods" / "choices.py", "    from luthier.core.contracts.ranks", imported)
    base, rows = save_model(tmp_path / "base", "llama"), write_rows(tmp_path / "rows.jsonl", sums(4))
    done = fresh.run("-c", USE, base, rows, tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "src")})
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert "What the change is charged for. Default: nothing. `luthier list tolls` shows all." in shown
    assert "Settings of ridge, for --toll" in shown and "The weight c." in shown


def run_of(*words: str) -> lt.Run:
    parsed = parse([*words])
    assert parsed is not None
    found = parsed[0].resolved(parsed[1])  # type: ignore[attr-defined]
    return found[0] if isinstance(found, tuple) else found


def test_every_choice_is_in_all_that_has_choices():
    for cls in (lt.Run, Method, Recipe, Settings):
        assert set(CHOICES) <= {f.name for f in dataclasses.fields(cls)}, cls
    assert set(CHOICES) <= set(inspect.signature(lt.train).parameters)
    shared = {name for name, choice in CHOICES.items() if not choice.apart} - {"calibration"}
    assert set(CHOICES) & set(inspect.signature(lt.federate).parameters) == shared | {"ranks"}  # of its own
    docs = field_docs(Choices)
    assert all(docs[name].endswith((".", ").")) for name in CHOICES)


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_every_choice_is_a_flag(name):
    flagged = {field for cls in (Train, Federate) for flags in cls.settings([]) for field in _fields(flags)}
    own = {"form": "method", "calibration": None}
    wanted = own.get(name, name)
    assert wanted is None or wanted in flagged | {f.name for f in dataclasses.fields(Train)}


def _fields(flags) -> set[str]:
    return {f.name for f in dataclasses.fields(flags.cls)} - set(flags.skip)


@pytest.mark.parametrize("name, axis", COMPONENTS.items())
def test_a_component_comes_back_from_flags_files_and_json(name, axis):
    """Each component that needs no more than its name, through every door."""
    for each in names(axis):
        try:
            component = find(axis, each)()
        except (lt.LuthierError, TypeError):
            continue  # it needs settings
        chosen: dict[str, Any] = {name: component}
        told: dict[str, Any] = {"select_rows": 4, "target": "t.jsonl"} if name == "select" else {}
        run = dataclasses.replace(lt.Run("m", "d", lt.LoRA()), **chosen, **told)
        assert lt.Run.from_dict(run.to_dict()) == run
        table = {"name": component.name(), **component.to_dict()}
        assert made(lt.LoRA, written(Settings(**{name: table})))[name] == component
        method = Method(form=lt.LoRA(), name="a", kind="luthier", **chosen)
        assert redescribed(described(method)) == described(method)
        assert run_of(*shlex.split(command(run))[1:]) == run
        break
    else:
        pytest.fail(f"no component of {axis} can be made by its name alone")


def test_what_an_earlier_version_described_is_understood():
    """Names without underscores, no word of later choices, a calibration that nothing uses."""
    method = Method(form=lt.LoRA(), name="a", kind="luthier", update=lt.LoRAPlus(ratio=4.0))
    stored = described(method)
    stored["update"] = {"name": "loraplus", "settings": {"ratio": 4.0}}
    stored["calibration"] = lt.Calibration(samples=3).to_dict()
    del stored["objective"], stored["select_rows"]
    assert redescribed(stored) == described(method)


def test_defaults_are_said_in_the_help():
    docs = field_docs(Choices)
    for name in COMPONENTS:
        assert usual(name) is None or f"Default: {usual(name)}" in docs[name]


def test_types_that_are_imported_for_typing_alone_are_found():
    assert hints(lt.Run)["update"][0] is lt.Update and hints(lt.Run)["ranks"][0] == lt.Ranks | None
