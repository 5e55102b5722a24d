"""Loops that draw their rows by number: what they say where there is no terminal."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from luthier.core.errors import LuthierError
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


@pytest.mark.parametrize("told", [{}, [], {"steps": "1", "loss": 1.0}, {"steps": -1, "loss": 1.0}, {"steps": 1},
                                  {"steps": 1, "loss": 1.0, "": 1}])  # fmt: skip
def test_a_damaged_state_is_told_and_changes_nothing(told, tmp_path):
    adam, new = (AdamState({"p": torch.nn.Parameter(torch.full((1,), value))}, 0.1) for value in (1.0, 2.0))
    adam.save(tmp_path / "state", {"steps": 1, "loss": 1.0})
    (tmp_path / "state" / "state.json").write_text(json.dumps(told))
    with pytest.raises(LuthierError, match=r"state\.json"):
        trained(new, tmp_path / "state", Steps(2, 1, "lr"), Console(file=io.StringIO()), "", lambda n: 1.0)
    assert new.params["p"].item() == 2.0


def test_tensors_of_another_shape_are_told(tmp_path):
    adam, new = (AdamState({"p": torch.nn.Parameter(torch.zeros(size))}, 0.1) for size in (1, 2))
    adam.params["p"].data = torch.zeros(3)
    adam.save(tmp_path / "state", {"steps": 1, "loss": 1.0})
    with pytest.raises(LuthierError, match="is damaged"):
        trained(new, tmp_path / "state", Steps(2, 1, "lr"), Console(file=io.StringIO()), "", lambda n: 1.0)
