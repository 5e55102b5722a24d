"""What messages and docstrings advise exists: commands, and flags of some command."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path

import luthier
from luthier.cli.parse import COMPLETION, commands
from luthier.core.contracts.component import axes, find, names
from luthier.methods.choices import CHOICES
from luthier.training import Run, Training

SOURCE = Path(luthier.__file__).parent
NAMED = re.compile(r"(?:`|Next: |learn: |: )luthier ([a-z_]+)\b([^`\n]*)")
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z_-]*[a-z])\b")
OTHERS = {
    "nproc-per-node",
    "help",
    COMPLETION.lstrip("-"),
    "lora",
    "control-vector",
    "control-vector-scaled",
    "merge",
    "only-binary",
    "max-lora-rank",
    "pretrained_checkpoint_dir",
    *("mcore_adapter", "to_hf", "merge_lora"),
}
"""Flags of other programs, and those that no command declares."""
MADE_UP = {"flag", "no"}


def strings() -> dict[str, str]:
    """Every text of the source by its place; what is filled in is an X."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(each.value) if isinstance(each, ast.Constant) else "X" for each in node.values)
                found[f"{file.relative_to(SOURCE)}:{node.lineno}"] = "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.setdefault(f"{file.relative_to(SOURCE)}:{node.lineno}", node.value)
    return found


@functools.cache
def flags() -> set[str]:
    """The flags of every command, and those that the settings of its components become."""
    settings = [flags.cls for cls in commands().values() for flags in cls.settings([])]
    classes = [
        *commands().values(),
        *settings,
        Run,
        Training,
        *(find(axis, name) for axis in axes() for name in names(axis)),
    ]
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    plain = {str(field.metadata.get("called", field.name)).lstrip("-") for field in fields}
    roles = {role for name in names("decodings") for role in find("decodings", name).roles}
    chosen = {f"{name}_{field}" for name in CHOICES for field in plain}
    return {name.replace("_", "-") for name in plain | chosen | roles | {f"no_{name}" for name in plain} | set(CHOICES)}


def test_commands_that_messages_name_exist():
    wrong = {
        place: command
        for place, text in strings().items()
        for command, _ in NAMED.findall(text)
        if command not in commands()
    }
    assert not wrong


def test_flags_that_messages_name_exist():
    wrong = {
        place: sorted(missing)
        for place, text in strings().items()
        if (missing := set(FLAG.findall(text)) - flags() - OTHERS - MADE_UP)
    }
    assert not wrong


def test_advice_is_found_at_all():
    texts = strings().values()
    assert sum(bool(NAMED.search(text)) for text in texts) > 40
    assert sum(bool(FLAG.search(text)) for text in texts) > 150
