"""Help, version, listing: what the command line says of itself, and how fast."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from luthier.cli.parse import commands, option
from luthier.cli.source import axes as quick_axes
from luthier.cli.source import card, field_docs
from luthier.core.contracts.component import axes, find, names

COMMANDS = [
    "annotate",
    "cache",
    "check",
    "combine",
    "compare",
    "continue",
    "convert",
    "decode",
    "doctor",
    "edit",
    "evaluate",
    "examine",
    "explain",
    "export",
    "federate",
    "generate",
    "gpicl",
    "import",
    "list",
    "measure",
    "merge",
    "meta",
    "metatune",
    "models",
    "monitor",
    "predict",
    "push",
    "rewrite",
    "run",
    "search",
    "select",
    "selftrain",
    "serve",
    "show",
    "sign",
    "studio",
    "train",
    "unlearn",
    "verify",
]


def test_every_command_is_found_by_discovery():
    assert sorted(commands()) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_examples(call, name):
    done = call(name, "--help")
    assert done.code == 0
    assert "Examples:" in done.out and f"luthier {name}" in done.out.split("Examples:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented(name):
    cls = commands()[name]
    assert set(cls.__dataclass_fields__) <= set(field_docs(cls))


def test_version(call):
    import luthier

    assert call("--version").out.strip() == luthier.__version__


def test_top_help_lists_every_command(call):
    assert all(f" {name} " in call("--help").out for name in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["list"], ["list", "recipes"], ["models"]])
def test_these_never_import_torch(words):
    code = f"import sys, luthier.cli; luthier.cli.main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_list_shows_every_component_with_its_equation(call):
    found = json.loads(call("list", "--json").out)
    for axis in axes():
        assert [row["name"] for row in found.get(axis, [])] == [find(axis, name).name() for name in names(axis)]
    assert {"name": "lora", "equation": "W' = W + s B A"}.items() <= next(
        row for row in found["forms"] if row["name"] == "lora"
    ).items()
    assert all(row["equation"] and row["paper"] for rows in found.values() for row in rows if "equation" in row)


def test_cards_read_from_source_agree_with_the_classes():
    for axis in axes():
        for name in names(axis):
            cls, read = find(axis, name), card(axis, name)
            assert (read.name, read.equation, read.paper) == (cls.name(), cls.equation(), cls.paper)


def test_axes_read_from_source_agree_with_discovery():
    assert sorted(quick_axes()) == sorted(axes())


def test_list_of_one_axis(call):
    done = call("list", "objectives")
    assert "sft" in done.out and "wegeft" not in done.out


def test_list_of_an_unknown_axis(call):
    done = call("list", "form")
    assert done.code == 2 and "did you mean 'forms'" in done.err


def test_method_flags_follow_the_method(call):
    assert "--scaling" in call("train", "--method", "lora", "--help").out
    assert "--scaling" not in call("train", "--method", "loreft", "--help").out


def test_every_training_setting_is_a_flag(call):
    from luthier.training import Training

    text = call("train", "--help").out
    for name in Training.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}"[:26] in text


def test_option_reads_both_spellings():
    assert option(["a", "--method", "lora"], "--method") == "lora"
    assert option(["a", "--method=lora"], "--method") == "lora"
    assert option(["a", "--method"], "--method") is None


def test_models_lists_the_catalogue(call):
    from luthier.models import catalogue

    found = json.loads(call("models", "--json").out)
    assert [entry["name"] for entry in found] == [entry.name for entry in catalogue()]
    assert {"licence", "size_bytes", "cached"} <= set(found[0])
    assert "licence" in call("models").out


def test_models_refuses_what_it_does_not_know(call):
    done = call("models", "fetch", "smollm2-135n")
    assert done.code == 2 and "did you mean 'smollm2-135m'" in done.err


def test_tables_in_a_pipe_keep_a_row_on_a_line(call):
    lines = call("list", "forms").out.splitlines()
    assert any(line.startswith("lora ") and "2106.09685" in line for line in lines)
    assert "\x1b" not in "".join(lines)
