"""Every command and every form runs on an accelerator with all of its tensors there, and finds what the CPU finds.

The accelerator is `support.accelerator`'s: each operator that is given a tensor of the CPU too is an error, as it is on
a GPU. A second one has no float64, as Apple's have not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from support import accelerator, fresh

pytestmark = [
    pytest.mark.skipif(accelerator.compiler() is None, reason="needs g++, which compiles the accelerator"),
    pytest.mark.long,
]


def told(*words: object, **environment: str) -> list:
    own = {**os.environ, "LUTHIER_DEVICE": "", **environment}
    done = fresh.run("-m", "support.accelerated", *words, env=own, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("lacking", [{}, {"DESK_HAS_NO_FLOAT64": "1"}], ids=["float64", "no float64"])
def test_every_command_runs_on_it(tmp_path, lacking):
    found = told("commands", tmp_path, **lacking)
    assert len(found) > 30
    assert [(words, said) for words, code, said in found if code] == []


def test_every_form_gives_what_it_gives_on_the_cpu():
    found = told("forms")
    assert len(found) > 30
    assert [each for each in found if each[1] > 1e-5] == []
