"""Intervals of shares that are all 0 or all 1, of which redrawn rows would show no spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comparing.test_statistics import run
from luthier.comparing.measures.significance import score_of
from luthier.core.numerics.resampling import exact_interval, mean_interval
from luthier.methods.examinations._asked import interval
from luthier.training.sequences.matrix import Matrix

SHARE = 1 - 0.025 ** (1 / 12)


def test_the_bounds_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    for right in (0, 12):
        found = stats.binomtest(right, 12).proportion_ci()
        assert exact_interval(np.full(12, right / 12)) == pytest.approx((found.low, found.high), abs=1e-9)
    assert exact_interval(np.array([0.0, 1.0])) is None is exact_interval(np.full(3, 0.4))
    assert exact_interval(np.zeros(0)) is None


def test_differences_that_are_all_nought_are_no_share():
    assert mean_interval(np.zeros(5), 0) == (0.0, 0.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_that_are_all_alike_prove_neither_0_nor_1(value):
    rows, wanted = np.full(12, value), pytest.approx((1 - SHARE, 1.0) if value else (0.0, SHARE))
    scored, cells = score_of([run("a", 0, rows.tolist())]), Matrix(["t"], [rows], {0: [rows]}).intervals()
    assert mean_interval(rows, 0, share=True) == wanted and (scored.low, scored.high) == wanted
    assert tuple(cells[:, 1, 0]) == wanted
    columns = torch.from_numpy(np.stack([rows, rows], 1))
    assert interval(lambda means: means[..., 0], columns, 100, 0)[1:] == wanted
    assert interval(lambda means: means[..., 1] - means[..., 0], columns, 100, 0) == pytest.approx((0, -SHARE, SHARE))
