"""Each aggregation against its equation, written out entry by entry in float64."""

from __future__ import annotations

import torch

import luthier as lt
from luthier.core.contracts.aggregation import factors
from luthier.core.numerics.delta import Delta

SCALES, SHARES = (2.0, 0.5, 1.25), (0.5, 0.3, 0.2)


def clients(*ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(9, rank).double(), torch.randn(rank, 7).double()) for rank in ranks]


def sent(pairs, scales=SCALES) -> list[Delta]:
    return [Delta.low_rank(s * b, a) for (b, a), s in zip(pairs, scales, strict=False)]


def mean_of_products(pairs, scales=SCALES) -> torch.Tensor:
    """Σ p_k s_k B_k A_k, one entry after the other."""
    total = torch.zeros(9, 7, dtype=torch.float64)
    for (b, a), s, p in zip(pairs, scales, SHARES, strict=True):
        for i in range(9):
            for j in range(7):
                total[i, j] += p * s * sum(float(b[i, r] * a[r, j]) for r in range(len(a)))
    return total


def test_flora_is_the_mean_of_the_products_at_mixed_ranks_and_scales():
    pairs = clients(2, 4, 3)
    found = lt.FLoRA().aggregate(sent(pairs), SHARES)
    assert found.rank == 9
    assert torch.allclose(found.dense(), mean_of_products(pairs), rtol=0, atol=1e-12)


def test_flora_stacks_the_shares_on_a():
    """B = [s_k B_k] and A = [p_k A_k], block by block."""
    pairs = clients(2, 4, 3)
    b, a = factors(lt.FLoRA().aggregate(sent(pairs), SHARES))
    assert torch.equal(b[:, 2:6], 0.5 * pairs[1][0])
    assert torch.equal(a[2:6], 0.3 * pairs[1][1])


def test_averaged_factors_are_not_the_mean_of_the_products():
    pairs = clients(3, 3, 3)
    wanted = mean_of_products(pairs, (2.0,) * 3)
    for method in (lt.FedIT(), lt.ZeroPadding()):
        found = method.aggregate(sent(pairs, (2.0,) * 3), SHARES).dense()
        assert float((found - wanted).norm() / wanted.norm()) > 0.3


def test_averaged_factors_have_the_cross_terms():
    """B A = Σ_k Σ_j p_k p_j s B_k A_j."""
    pairs = clients(3, 3, 3)
    wanted = sum(SHARES[k] * SHARES[j] * 2.0 * pairs[k][0] @ pairs[j][1] for k in range(3) for j in range(3))
    assert isinstance(wanted, torch.Tensor)
    assert torch.allclose(lt.FedIT().aggregate(sent(pairs, (2.0,) * 3), SHARES).dense(), wanted, rtol=0, atol=1e-12)


def test_zero_padding_is_the_average_of_equal_ranks_and_pads_the_others():
    same = sent(clients(3, 3, 3))
    plain = [lt.FedIT().aggregate(same, SHARES), lt.ZeroPadding().aggregate(same, SHARES)]
    assert torch.equal(plain[0].dense(), plain[1].dense())
    pairs = clients(1, 2, 4)
    b, a = factors(lt.ZeroPadding().aggregate(sent(pairs, (1.0,) * 3), SHARES))
    assert b.shape == (9, 4) and a.shape == (4, 7)
    assert torch.allclose(b[:, 3], 0.2 * pairs[2][0][:, 3])  # a direction of the third client alone
    assert torch.allclose(a[1], 0.3 * pairs[1][1][1] + 0.2 * pairs[2][1][1])
    assert torch.allclose(a[0], 0.5 * pairs[0][1][0] + 0.3 * pairs[1][1][0] + 0.2 * pairs[2][1][0])


def test_flexlora_is_the_best_of_its_rank():
    """The truncated SVD of the mean: its error is the tail of the singular values."""
    pairs = clients(2, 4, 3)
    wanted = mean_of_products(pairs)
    found = lt.FlexLoRA().aggregate(sent(pairs), SHARES)
    values = torch.linalg.svdvals(wanted)
    assert found.rank == 4 and float(values[4]) > 0.1
    assert torch.allclose((wanted - found.dense()).norm(), values[4:].norm())
    smaller = lt.FlexLoRA().start(found, 2)
    assert torch.allclose((wanted - smaller.dense()).norm(), values[2:].norm())
