"""Nearest neighbours against brute force, on clouds that are kind to the matrix product and on clouds that are not."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.numerics.neighbours import distinct, neighbours, propose


def brute(points: torch.Tensor, k: int = 2) -> torch.Tensor:
    points = points.double()
    gaps = torch.stack([(points - row).square().sum(1).sqrt() for row in points])
    return gaps.fill_diagonal_(torch.inf).sort(1).values[:, :k]


def plain() -> torch.Tensor:
    return torch.randn(300, 6) @ torch.randn(6, 40)


def far() -> torch.Tensor:
    """A cloud of radius one, a million away from the origin."""
    return torch.randn(300, 20, dtype=torch.float64) + 1e6


def clusters() -> torch.Tensor:
    """Tight clusters far apart: within one, |x|² + |y|² - 2 x·y has no digit left in float32."""
    return (torch.randn(10, 20).repeat(30, 1) * 1e3 + torch.randn(300, 20) * 1e-3).to(torch.float32)


def specks() -> torch.Tensor:
    """The same beyond float64's product."""
    return (
        torch.randn(10, 20, dtype=torch.float64).repeat(30, 1) * 1e6 + torch.randn(300, 20, dtype=torch.float64) * 1e-6
    )


def grid() -> torch.Tensor:
    """Ties everywhere."""
    axis = torch.arange(7.0)
    return torch.cartesian_prod(axis, axis, axis)


@pytest.mark.parametrize("cloud", [plain, far, clusters, specks, grid])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_blocked_unblocked_and_brute_force_agree(cloud, k):
    points = cloud()
    before = points.clone()
    expected = brute(points, k)
    torch.testing.assert_close(neighbours(points, k), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(neighbours(points, k, memory=2**15), expected, rtol=1e-9, atol=0)
    assert torch.equal(points, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_points_of_any_precision(dtype):
    points = plain().to(dtype)
    torch.testing.assert_close(neighbours(points), brute(points), rtol=1e-9, atol=0)


def test_a_product_in_low_precision_changes_nothing(monkeypatch):
    """As TF32 would: the proposal is a thousand times coarser, and the rows left in doubt are searched again."""
    points, proposal = plain(), propose

    def coarse(cloud, rows, count, dtype):
        if dtype == torch.float32:
            cloud = cloud._replace(points=cloud.points.to(torch.bfloat16).float())
        return proposal(cloud, rows, count, dtype)

    monkeypatch.setattr("luthier.core.numerics.neighbours.propose", coarse)
    torch.testing.assert_close(neighbours(points), brute(points), rtol=1e-9, atol=0)


def test_few_points_have_few_neighbours():
    points = torch.tensor([[0.0], [1.0], [3.0]])
    assert neighbours(points).tolist() == [[1, 3], [1, 2], [2, 3]]
    with pytest.raises(LuthierError, match="3 points have no 3 nearest"):
        neighbours(points, 3)


def test_progress_sees_every_block():
    seen = []

    def track(blocks):
        for rows in blocks:
            seen.append(len(rows))
            yield rows

    neighbours(plain(), memory=2**17, track=track)
    assert sum(seen) >= 300 and len(seen) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_duplicates_are_dropped_and_the_first_stays(dtype):
    points = torch.randn(700, 9).to(dtype)
    points[:, 0] = 0.0
    points[500] = points[3]
    points[600] = points[3]
    points[600, 0] = -0.0
    kept = distinct(points)
    expected = points.unique(dim=0)
    assert len(kept) == len(expected) and torch.equal(points[kept].unique(dim=0), expected)
    assert 3 in kept and 500 not in kept and 600 not in kept
    assert kept.tolist() == sorted(kept.tolist())


def test_rows_that_hold_the_same_numbers_elsewhere_are_distinct():
    assert len(distinct(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))) == 2


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.randn(20), "shape \\[20\\]"),
        (torch.arange(40).reshape(20, 2), "int64"),
        (torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, torch.inf]]), "2 of 3 points hold NaN"),
    ],
)
def test_bad_points_are_refused(points, message):
    with pytest.raises(LuthierError, match=message):
        neighbours(points)
