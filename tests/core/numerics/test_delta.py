"""The algebra of deltas, and that forms lower to it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.core.adapters.lower import delta_of
from luthier.core.adapters.swap import adapters_of
from luthier.core.numerics.delta import Delta


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def kinds() -> dict[str, Delta]:
    return {
        "low rank": Delta.low_rank(random(5, 2), random(2, 4)),
        "sparse": Delta.sparse((5, 4), torch.tensor([7, 1, 19]), random(3)),
        "dense": Delta.dense_of(random(5, 4)),
    }


@pytest.mark.parametrize("first", kinds())
@pytest.mark.parametrize("second", kinds())
def test_sums_scale_and_norms_are_those_of_the_dense_tensor(first, second):
    a, b = kinds()[first], kinds()[second]
    total = a + 0.5 * b
    assert torch.allclose(total.dense(), a.dense() + 0.5 * b.dense())
    assert total.norm() == pytest.approx(float(total.dense().norm()))


def test_a_sum_keeps_its_structure():
    low, sparse = kinds()["low rank"], kinds()["sparse"]
    assert (low + low).rank == 4
    assert (sparse + sparse).index.tolist() == [1, 7, 19]


def test_top_keeps_the_largest():
    dense = Delta.dense_of(torch.tensor([[1.0, -5.0], [3.0, 0.5]]))
    assert dense.top(2).dense().tolist() == [[0.0, -5.0], [3.0, 0.0]]


def test_the_truncated_factors_are_the_best_of_their_rank():
    delta = Delta.dense_of(random(6, 5))
    best, lost = delta.factor(3)
    assert best.rank == 3
    rest = torch.linalg.svdvals(delta.dense())[3:].norm() / delta.dense().norm()
    assert lost == pytest.approx(float(rest))


def test_shapes_must_agree():
    with pytest.raises(lt.LuthierError, match="cannot be added"):
        Delta.dense_of(random(2, 3)) + Delta.dense_of(random(3, 2))


@pytest.mark.parametrize(("form", "rank"), [(lt.LoRA(rank=2), 2), (lt.WeGeFT(rank=2), 2), (lt.IA3(), None)])
def test_affine_forms_lower_to_a_delta(form, rank):
    net = lt.attach(nn.Sequential(*linear(bias=rank is not None)), form)
    for parameter in lt.trainable(net).values():
        parameter.data += torch.randn_like(parameter)
    layer = net[0]
    delta = delta_of(layer, adapters_of(layer).tuners())
    assert delta.rank == rank
    x = random(3, 4)
    with lt.disabled(net):
        base = layer(x)
    assert torch.allclose(layer(x), base + x @ delta.dense().T)


def linear(bias: bool) -> list[nn.Module]:
    return [nn.Linear(4, 5, bias=bias).double(), nn.Linear(5, 2, bias=bias).double()]


def test_a_change_of_the_bias_is_not_lost():
    net = lt.attach(nn.Sequential(*linear(bias=True)), lt.IA3())
    for parameter in lt.trainable(net).values():
        parameter.data += torch.randn_like(parameter)
    with pytest.raises(lt.LuthierError, match="bias"):
        delta_of(net[0], adapters_of(net[0]).tuners())


def test_a_difference_and_what_is_left_of_it():
    for first in kinds().values():
        assert (first - first).dense().abs().max() < 1e-14
    sparse = kinds()["sparse"]
    assert len((sparse - sparse).united().values) == 0


@pytest.mark.parametrize("kind", kinds())
def test_rows_of_zeros_below_keep_the_structure(kind):
    delta = kinds()[kind]
    padded = delta.padded(7)
    assert padded.shape == (7, 4) and padded.rank == delta.rank and padded.is_sparse == delta.is_sparse
    assert torch.equal(padded.dense()[:5], delta.dense()) and not padded.dense()[5:].any()
    with pytest.raises(lt.LuthierError, match="padded"):
        delta.padded(4)


@pytest.mark.parametrize("kind", kinds())
def test_it_is_applied_to_a_weight_that_stays_as_it_was(kind):
    delta, weight = kinds()[kind], random(5, 4)
    before = weight.clone()
    assert torch.equal(delta.apply(weight), before + delta.dense()) and torch.equal(weight, before)


def test_dense_to_sparse_and_back_is_exact():
    full = random(5, 4) * (torch.rand(5, 4) < 0.3)
    sparse = Delta.dense_of(full).nonzero()
    assert len(sparse.values) == int(full.count_nonzero()) and torch.equal(sparse.dense(), full)


def test_a_low_rank_delta_is_truncated_through_its_factors():
    delta = Delta.low_rank(random(9, 4), random(4, 7))
    (best, lost), (plain, wanted) = delta.factor(2), Delta.dense_of(delta.dense()).factor(2)
    assert lost == pytest.approx(wanted) and torch.allclose(best.dense(), plain.dense())
