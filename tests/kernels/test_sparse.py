"""The kernel of sparse changes: few entries have the gradients that many have, in any order."""

from __future__ import annotations

import warnings

import pytest
import torch

from luthier.kernels import sparse

D_OUT, D_IN = 24, 40


def asked(share: float, dtype: torch.dtype, order: str):
    torch.manual_seed(0)
    index = torch.randperm(D_OUT * D_IN)[: round(share * D_OUT * D_IN)]
    index = index.sort().values if order == "sorted" else index
    return torch.randn(17, D_OUT, dtype=dtype), torch.randn(17, D_IN, dtype=dtype), index


@pytest.mark.parametrize("order", ["sorted", "as drawn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_entries_of_the_gradient_are_those_of_the_whole(share, dtype, order):
    dy, x, index = asked(share, dtype, order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sparse._gradients(dy, x, index)
    wanted = (dy.mT @ x).flatten()[index]
    assert found.dtype == dtype and torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_few_entries_need_no_whole_gradient(monkeypatch):
    if not torch.backends.mkl.is_available():
        pytest.skip("torch's products of chosen entries are MKL's")
    dy, x, index = asked(0.05, torch.float64, "sorted")
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda *_: pytest.fail("the whole gradient was made"))
    assert len(sparse._gradients(dy, x, index)) == len(index)


def test_a_change_is_added_to_the_entries_alone():
    w = torch.randn(D_IN, D_OUT).mT  # as a transposed layer holds it
    index, values = torch.tensor([0, 7, D_OUT * D_IN - 1]), torch.tensor([1.0, 2.0, 3.0])
    moved = sparse._moved(w, index, values)
    expected = w.contiguous().flatten().index_add(0, index, values).view(D_OUT, D_IN)
    assert torch.equal(moved, expected) and w[0, 0] != moved[0, 0]
