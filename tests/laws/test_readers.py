"""No reader ends in a traceback, hangs or takes much memory, whatever a file holds: seeded changes of good files.

`python -m bench reliability` tries many more of them (docs/reliability.md).
"""

from __future__ import annotations

import warnings

import pytest

from luthier.cli.parse import commands
from support.command_cases import ELSEWHERE, READ, reader
from support.mutations import MEMORY, READERS, run
from support.thinned import kept_of

OFTEN = ("train", "import", "show")
"""Commands that are tried always; the others are when they are named, and in `make thorough`."""
CASES = {"GGUF": 11, "pyreft": 30, "peft": 40}
"""Of the slower readers."""


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_refuses(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = run(READERS[name], tmp_path, CASES.get(name, 60))
    assert not count.faults, "\n\n".join(count.faults[:3])
    assert count.refused and count.read + count.refused == count.cases
    assert count.grown < MEMORY


def test_every_command_is_tried_on_damaged_folders():
    assert set(commands()) == set(READ) | set(ELSEWHERE) and not set(READ) & set(ELSEWHERE)


@pytest.mark.parametrize("name", kept_of(list(READ), OFTEN))
def test_a_command_reads_or_refuses_what_lies_in_its_folders(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = run(reader(name), tmp_path, 5)
    assert not count.faults, "\n\n".join(count.faults[:3])
    assert count.read and count.grown < MEMORY
