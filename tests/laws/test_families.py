"""Laws of the families: whatever decides what is trained has one, and so has every command that makes rows."""

from __future__ import annotations

import dataclasses
import json

import pytest

from luthier.cli.parse import commands
from luthier.core.contracts.component import axes, find, names
from luthier.core.families import CHECKLIST, DATA_FAMILIES, FAMILIES, ticked, told

ALLOWED = {**dict.fromkeys(("forms", "inits", "ranks", "updates"), FAMILIES), "rewrites": DATA_FAMILIES}


@pytest.mark.parametrize("axis", axes())
def test_every_method_has_exactly_one_family(axis):
    for name in names(axis):
        family = find(axis, name).family
        allowed = ALLOWED.get(axis, [""])
        assert family in allowed, f'{axis}/{name}.py: family = "{family}"; give one of {", ".join(allowed)}'


def test_every_data_command_says_whose_knowledge_it_holds():
    for name, cls in commands().items():
        assert (cls.data_family in DATA_FAMILIES) == (cls.group == "Data") == writes_rows(cls), name
        assert cls.data_family in ("", *DATA_FAMILIES), name


def writes_rows(cls) -> bool:
    """A file of rows is what a command writes whose --out is one where nobody said otherwise."""
    return any(each.name == "out" and str(each.default).endswith(".jsonl") for each in dataclasses.fields(cls))


@pytest.mark.parametrize("family", [*FAMILIES, *DATA_FAMILIES])
def test_every_family_has_somebody(family, capsys):
    from luthier.cli import main

    assert not main(["list", "--family", family, "--json"])
    assert any(json.loads(capsys.readouterr().out).values())


@pytest.mark.parametrize("name", names("gates"))
def test_gates_cover_what_the_checklist_has(name):
    assert set(find("gates", name).covers) <= set(CHECKLIST)  # type: ignore[attr-defined]


def test_the_checklist_is_told_whole():
    said = told(ticked({"seeds", "cost"}))
    assert said.startswith("Evaluated: seeds, cost; not evaluated: baseline, intervals,")
    assert all(item in said for item in CHECKLIST)


def test_families_are_listed(capsys):
    from luthier.cli import main

    assert not main(["list", "--family", "prompt", "--json"])
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["forms"]] == ["prefix"]
    assert not main(["list", "--family", "expert"])
    assert "select" in capsys.readouterr().out
    assert main(["list", "--family", "promt"]) and "did you mean 'prompt'" in capsys.readouterr().err
    assert main(["list", "gates", "--family", "expert"]) and "nothing of gates" in capsys.readouterr().err
