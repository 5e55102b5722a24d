"""No reader ends in a traceback, hangs or takes much memory, whatever a file holds: seeded changes of good files.

`python -m bench reliability` tries many more of them (docs/reliability.md).
"""

from __future__ import annotations

import warnings

import pytest

from support.mutations import MEMORY, READERS, run

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
