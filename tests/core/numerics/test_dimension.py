"""TwoNN against scikit-dimension, against the truth, and under what must not change it."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.numerics.crosscheck import crosscheck
from luthier.core.numerics.dimension import METHODS, Dimension, draws, intrinsic_dimension, ratios


def plane(n: int, d: int, width: int = 30) -> torch.Tensor:
    """A uniform cube in a turned subspace."""
    return torch.rand(n, d, dtype=torch.float64) @ torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q[:d]


@pytest.mark.filterwarnings("ignore:divide by zero")  # theirs, at discard 0
@pytest.mark.parametrize(
    ("method", "theirs", "discard"),
    [("fit", "linear", 0.1), ("fit", "linear", 0.25), ("mle", "mle", 0.0), ("mle", "mle", 0.1), ("mle", "mle", 0.25)],
)
@pytest.mark.parametrize(("n", "d"), [(97, 2), (400, 10)])
def test_agrees_with_scikit_dimension(n, d, method, theirs, discard):
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is an extra")
    if "method" not in inspect.signature(skdim.id.TwoNN).parameters:
        pytest.skip("scikit-dimension before 0.5 has no likelihood")
    points = plane(n, d)
    expected = skdim.id.TwoNN(discard_fraction=discard, method=theirs).fit(points.numpy()).dimension_
    found = intrinsic_dimension(points, method=method, discard=discard, resamples=2)
    assert found.value == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("d", [1, 3])
def test_the_interval_holds_the_truth_at_low_dimension(method, d):
    """95% in name, 83 to 87% over 300 such clouds, for neighbours share distances: at least 28 of 40 here."""
    held = 0
    for points in torch.randn(40, 400, d + 1, dtype=torch.float64):
        found = intrinsic_dimension(points / points.norm(dim=1, keepdim=True), method=method, resamples=100)
        held += found.low < d < found.high
        assert found.low < found.value < found.high
        assert found.high - found.low < 0.4 * d
    assert held >= 28


@pytest.mark.parametrize("method", METHODS)
def test_exponential_ratios_return_their_rate(method):
    log_mu = torch.distributions.Exponential(torch.tensor(20.0, dtype=torch.float64)).sample((400, 500))
    found = METHODS[method](log_mu.exp(), 0.1)
    assert found.shape == (400,)
    assert float(found.mean()) == pytest.approx(20, rel=0.02)


def test_the_likelihood_is_unbiased_where_few_ratios_are_kept():
    log_mu = torch.distributions.Exponential(torch.tensor(5.0, dtype=torch.float64)).sample((40000, 12))
    assert float(METHODS["mle"](log_mu.exp(), 0.5).mean()) == pytest.approx(5, rel=0.02)


def test_scale_turn_and_shift_change_nothing():
    points = plane(300, 4)
    turn = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    expected = intrinsic_dimension(points, resamples=20)
    for moved in (points * 1e-7, points @ turn, points + 1e3):
        found = intrinsic_dimension(moved, resamples=20)
        assert (found.value, found.low, found.high) == pytest.approx(
            (expected.value, expected.low, expected.high), rel=1e-6
        )


def test_bfloat16_points_are_read_as_they_are():
    points = plane(400, 3).to(torch.bfloat16)
    assert intrinsic_dimension(points) == intrinsic_dimension(points.double())


def test_without_discarding_the_line_leaves_the_last_ratio_out():
    """Where scikit-dimension's line takes the logarithm of 0."""
    points = plane(200, 3)
    found = intrinsic_dimension(points, method="fit", discard=0.0, resamples=2)
    assert found.value == pytest.approx(3, rel=0.2)


def test_duplicates_are_counted_and_change_nothing():
    points = plane(200, 3)
    once, twice = (intrinsic_dimension(p, resamples=20) for p in (points, torch.cat([points, points[:50]])))
    assert (once.duplicates, twice.duplicates) == (0, 50)
    assert twice == Dimension(once.value, once.low, once.high, 200, 50, "mle")


def test_draws_of_equally_many_points_are_joint():
    mu = ratios(plane(200, 3))
    assert torch.equal(draws(mu, seed=1), draws(mu, seed=1))
    assert not torch.equal(draws(mu, seed=1), draws(mu, seed=2))
    # log μ doubled halves d, draw by draw, only if both draws take the same indices
    torch.testing.assert_close(draws(mu.square(), seed=1), draws(mu, seed=1) / 2)


@pytest.mark.parametrize(
    ("points", "settings", "message"),
    [
        (torch.ones(100, 3), {}, "1 distinct points \\(99 duplicates dropped\\)"),
        (torch.randn(9, 3), {}, "9 distinct points"),
        (torch.full((30, 3), torch.nan), {}, "30 of 30 points hold NaN"),
        (torch.randn(30), {}, "shape \\[30\\]"),
        (torch.randn(30, 3), {"method": "lme"}, "did you mean 'mle'"),
        (torch.randn(30, 3), {"discard": 1.0}, "discard is 1.0"),
        (torch.randn(30, 3), {"discard": 0.95}, "1 of 30 ratios are left"),
        (torch.randn(30, 3), {"resamples": 1}, "resamples is 1"),
        (torch.cartesian_prod(*[torch.arange(5.0)] * 3), {}, "two neighbours at one distance"),
    ],
)
def test_bad_input_is_refused(points, settings, message):
    with pytest.raises(LuthierError, match=message):
        intrinsic_dimension(points, **settings)


def test_ratios_refuse_duplicates():
    points = plane(50, 2)
    with pytest.raises(LuthierError, match="2 of 51 points have another at distance 0"):
        ratios(torch.cat([points, points[:1]]))


def test_crosscheck_finds_the_dimension_and_repeats_itself():
    pytest.importorskip("skdim", reason="scikit-dimension is an extra")
    points = torch.cat([plane(200, 4), torch.zeros(20, 30, dtype=torch.float64)])
    found = crosscheck(points, seed=3, limit=150)
    assert found == crosscheck(points, seed=3, limit=150) != crosscheck(points, seed=4, limit=150)
    assert len(found) == 2
    for value in found.values():
        assert value == pytest.approx(4, rel=0.25)


def test_crosscheck_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(LuthierError, match="luthier\\[dimension\\]"):
        crosscheck(plane(50, 2))
