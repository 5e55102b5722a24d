"""Low-rank terms of several adapters at once are those of a loop over runs, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch

import luthier as lt
from luthier.core.contracts.kernel import Part
from luthier.kernels._runs import _Added, _ByRun, term

SIZES = (3, 5, 1, 4, 2)
WHOSE = (0, None, 1, 0, 2)
"""The first adapter has two runs, and one run has none."""
RANKS = (2, 7, 4)


@pytest.mark.parametrize("whose", [WHOSE, (0, 1, 2, None, None), (2, 1, 0, 1, 2)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 5e-2)])
def test_the_term_and_its_gradients(whose, dtype, close):
    drawn = torch.Generator().manual_seed(0)
    new = lambda *shape: torch.randn(*shape, generator=drawn).to(dtype)  # noqa: E731
    own = [{"A": new(rank, 16).requires_grad_(), "B": new(12, rank).requires_grad_()} for rank in RANKS]
    x, y, dy = new(sum(SIZES), 16).requires_grad_(), new(sum(SIZES), 12).requires_grad_(), new(sum(SIZES), 12)
    parts = [Part(n, None, {}) if k is None else Part(n, lt.LoRA(rank=RANKS[k]), own[k])
             for n, k in zip(SIZES, whose, strict=True)]  # fmt: skip
    made, held = term(parts, [0.0 if k is None else 0.5 + k for k in whose], x)
    found = made.added(y.clone(), x, [part.p["A"] for part in held], [part.p["B"] for part in held])
    pieces = []
    for (a, b), k in zip(itertools.pairwise(itertools.accumulate(SIZES, initial=0)), whose, strict=True):
        change = 0 if k is None else (0.5 + k) * (x[a:b] @ own[k]["A"].mT @ own[k]["B"].mT)
        pieces.append(y[a:b] + change)
    wanted = torch.cat(pieces)
    assert torch.allclose(found, wanted, rtol=close, atol=close * 10)
    inputs = [x, y, *(t for each in own for t in each.values())]
    pairs = zip(*(torch.autograd.grad(out, inputs, dy, allow_unused=True) for out in (found, wanted)), strict=True)
    for one, two in pairs:
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, rtol=close, atol=close * 10 * float(two.abs().max()))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_products_in_place_are_those_of_the_stacks(rate):
    drawn = torch.Generator().manual_seed(1)
    new = lambda *shape: torch.randn(*shape, generator=drawn).requires_grad_()  # noqa: E731
    own = [{"A": new(rank, 16), "B": new(12, rank)} for rank in RANKS]
    x, y, dy = new(sum(SIZES), 16), new(sum(SIZES), 12), new(sum(SIZES), 12).detach()
    parts = [Part(n, None, {}) if k is None else Part(n, lt.LoRA(rank=RANKS[k]), own[k], rate)
             for n, k in zip(SIZES, WHOSE, strict=True)]  # fmt: skip
    made, held = term(parts, [0.0 if k is None else 0.5 + k for k in WHOSE], x)
    factors = [part.p[key] for key in ("A", "B") for part in held]
    outs = [how.apply(y.clone(), x, made, *factors) for how in (_ByRun, _Added)]
    assert torch.allclose(*outs, atol=1e-5)
    for one, two in zip(*(torch.autograd.grad(out, [x, y, *factors], dy) for out in outs), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_the_scale_is_not_rounded_to_half_precision():
    """1/3 is 0.334 in bfloat16; along the exact result, the term and the gradient of B are as long as it."""
    drawn = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(64, width, generator=drawn).bfloat16() for width in (16, 24))
    p = {"A": torch.randn(4, 16, generator=drawn).bfloat16().float(), "B": torch.randn(24, 4, generator=drawn)}
    p["B"].requires_grad_()
    made, _ = term([Part(64, lt.LoRA(rank=4), p)], [1 / 3], x)
    found = made.added(torch.zeros(64, 24, dtype=x.dtype), x, [p["A"]], [p["B"]])
    (grad,) = torch.autograd.grad(found, p["B"], dy)
    h = x.double() @ p["A"].double().mT / 3
    for one, exact in ((found, h @ p["B"].detach().double().mT), (grad, dy.double().mT @ h)):
        assert float((one.detach().double() * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=5e-4)
