"""A-GEM: the projection, against its two laws, in float64."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.update import Update


def vectors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=draw, dtype=dtype) for key, shape in {"a": (3, 4), "b": (7,)}.items()}


def dot(left, right) -> float:
    return float(sum((left[key].double() * right[key].double()).sum() for key in left))


@pytest.mark.parametrize("name", [name for name in names("updates") if find("updates", name, Update).rehearses])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_step_raises_the_loss_of_earlier_rows_to_first_order(name, dtype):
    """The law: g' · r ≥ 0; g is left as it is, bit for bit, where g · r ≥ 0 already."""
    update, turned = find("updates", name, Update)(), 0
    for seed in range(30):
        g, r = vectors(seed, dtype), vectors(seed + 100, dtype)
        after = update.project(g, r)
        scale = (dot(after, after) * dot(r, r)) ** 0.5
        assert dot(after, r) >= -scale * torch.finfo(dtype).eps * 4
        if dot(g, r) >= 0:
            assert all(after[key] is g[key] for key in g)
        else:
            turned += 1
            assert abs(dot(after, r)) <= scale * torch.finfo(dtype).eps * 4
    assert 5 < turned < 25


def test_it_is_the_nearest_gradient_that_agrees():
    """min |g' - g| with g' · r ≥ 0: the residual lies along r."""
    update = lt.AGEM()
    g = vectors(1)
    r = {key: -t + 0.1 * u for (key, t), u in zip(g.items(), vectors(2).values(), strict=True)}
    after = update.project(g, r)
    residual = {key: g[key] - after[key] for key in g}
    cosine = dot(residual, r) / (dot(residual, residual) * dot(r, r)) ** 0.5
    assert cosine == pytest.approx(-1, abs=1e-12)


def test_a_tensor_that_earlier_rows_do_not_reach_keeps_its_gradient():
    g = vectors(1)
    after = lt.AGEM().project(g, {"a": -g["a"]})
    assert torch.equal(after["b"], g["b"]) and after["a"].abs().max() < 1e-12
