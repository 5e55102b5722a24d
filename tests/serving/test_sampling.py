"""Choosing tokens: the distributions, row by row."""

from __future__ import annotations

import pytest
import torch

from luthier.decoding.loop import probabilities
from luthier.engine.sampling import LIKELY, choose, drawing, nucleus
from luthier.engine.settings import Sampling


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 0.8), (2.0, 0.6)])
def test_tokens_follow_their_distribution(temperature, top_p):
    logits = torch.tensor([0.1, 2.0, 1.5, -1.0, 0.7, -torch.inf])
    wanted = probabilities(logits, Sampling(temperature=temperature, top_p=top_p))
    draws = [drawing(temperature, top_p, seed, None) for seed in range(20_000)]
    found = torch.tensor([choice.token for choice in choose(logits.expand(20_000, -1), draws) if choice])
    shares = found.bincount(minlength=6) / len(found)
    assert torch.allclose(shares, wanted, atol=0.015)
    assert not shares[wanted == 0].any()


def test_the_nucleus_is_that_of_a_whole_sort():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5 * LIKELY, generator=draw) * torch.tensor([[0.01], [1], [3], [9], [1], [0.1]])
    top_p = torch.tensor([[0.9], [0.9], [0.5], [0.99], [0.01], [0.999]])
    found = nucleus(logits.softmax(-1), top_p)
    for row, p in enumerate(top_p[:, 0].tolist()):
        wanted = probabilities(logits[row], Sampling(temperature=1.0, top_p=p))
        assert torch.allclose(found[row] / found[row].sum(), wanted, atol=1e-6)


def test_rows_do_not_know_of_each_other():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 1000, generator=draw)
    settings = [(0.0, 1.0), (1.0, 1.0), (0.3, 0.9), (5.0, 0.99), (1e-9, 1.0), (1.0, 1e-6), (1.0, 0.5), (0.0, 0.5)]
    together = choose(logits, [drawing(t, p, 4, 2) for t, p in settings])
    for row, (t, p) in enumerate(settings):
        (lonely,) = choose(logits[row : row + 1], [drawing(t, p, 4, 2)])
        assert lonely is not None and together[row] == lonely
    for row in (0, 4, 5, 7):
        assert together[row].token == int(logits[row].argmax())  # type: ignore[union-attr]


def test_rows_that_are_no_numbers_get_no_token():
    logits = torch.zeros(4, 5)
    logits[0, 2] = torch.nan
    logits[1] = -torch.inf
    logits[2, 1] = torch.inf
    draws = [drawing(t, 0.9, 0, 3) for t in (0.0, 1.0, 1.0, 1.0)]
    assert [choice is None for choice in choose(logits, draws)] == [True, True, True, False]


def test_negative_and_large_seeds_count():
    logits = torch.zeros(1, 10_000)
    found = {choose(logits, [drawing(1.0, 1.0, seed, None)])[0] for seed in (-1, 2**63, 5, 2**64 + 6)}
    assert len(found) == 4
