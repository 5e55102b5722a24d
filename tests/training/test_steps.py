"""Loops that draw their rows by number: what they say where there is no terminal."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from luthier.training.adam_state import AdamState
from luthier.training.steps import LINES, Steps, trained


@pytest.mark.parametrize("count", [1, 3, 5, 9, 13, 100])
def test_where_there_is_no_terminal_five_lines_are_said_and_the_last_step_is_one(count, tmp_path):
    said = io.StringIO()
    adam = AdamState({"p": torch.nn.Parameter(torch.zeros(1))}, 0.1)
    trained(
        adam, tmp_path / "state", Steps(count, count, "lr"), Console(file=said, width=80), "learning", lambda n: 1.0
    )
    lines = [line for line in said.getvalue().splitlines() if "step" in line]
    assert len(lines) == min(count, LINES) and f"step {count}/{count} " in lines[-1]
