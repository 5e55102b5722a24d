"""The Triton path of a mixed batch, by Triton's interpreter, against its reference implementation."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.kernels import _rows
from luthier.kernels._rows import Rows


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_rows_read_their_own_factors():
    script = Path(__file__).parents[1] / "support" / "gathered.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["torch.float32"]) < 1e-6 and max(found["torch.bfloat16"]) < 1e-2


def test_it_is_for_a_few_tokens_of_float32_factors_on_cuda():
    a, b = [torch.randn(2, 6)], [torch.randn(2, 4)]
    rows, called = Rows(a, b), []
    assert rows.gathered is None
    rows.gathered = lambda *given: called.append(given)
    for tokens in (_rows.FEW, _rows.FEW + 1):
        rows.adder((0, None))(torch.zeros(2, tokens, 4), torch.randn(2, tokens, 6))
    assert [given[0].shape[1] for given in called] == [_rows.FEW]
