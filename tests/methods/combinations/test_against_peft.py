"""peft's merging of tensors as the oracle, where it computes the same thing."""

from __future__ import annotations

import pytest
import torch

from luthier.methods.combinations.task_arithmetic import TaskArithmetic
from luthier.methods.combinations.ties import TIES
from support.plain import dense, place

utils = pytest.importorskip("peft.utils.merge_utils")


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties(density):
    deltas = dense(20, 30, count=4)
    wanted = utils.ties([d.dense() for d in deltas], torch.ones(4).double(), density)
    found = TIES(density=density).merge(deltas, [1.0] * 4, place(20, 30)).dense()
    assert torch.allclose(found, wanted, rtol=1e-12)


def test_task_arithmetic():
    deltas, weights = dense(20, 30), [0.5, -1.0, 2.0]
    wanted = utils.task_arithmetic([d.dense() for d in deltas], torch.tensor(weights).double())
    assert torch.allclose(TaskArithmetic().merge(deltas, weights, place(20, 30)).dense(), wanted, rtol=1e-12)
