"""Decodings against their definitions, written out."""

from __future__ import annotations

import pytest
import torch

import luthier as lt

BASE, FIRST, SECOND = (torch.randn(4, 13, generator=torch.Generator().manual_seed(n)).double() for n in range(3))


def distribution(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1)


def test_proxy_is_a_product_of_experts():
    found = lt.Proxy(alpha=0.7).scores({"base": BASE, "expert": FIRST, "anti": SECOND})
    p = distribution(BASE) * (distribution(FIRST) / distribution(SECOND)) ** 0.7
    assert torch.allclose(distribution(found), p / p.sum(-1, keepdim=True), rtol=1e-12)


def test_proxy_of_an_expert_that_learned_nothing_is_the_base():
    assert torch.equal(lt.Proxy().scores({"base": BASE, "expert": FIRST, "anti": FIRST}), BASE)


def test_proxy_of_the_anti_expert_itself_is_the_expert():
    found = lt.Proxy().scores({"base": SECOND, "expert": FIRST, "anti": SECOND})
    assert torch.allclose(distribution(found), distribution(FIRST), rtol=1e-12)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0])
def test_emulated_fine_tuning_with_one_model_is_proxy_tuning(w):
    found = lt.Emulated(weights=(w,)).scores({"base": BASE, "tuned": FIRST[None], "reference": SECOND})
    proxy = lt.Proxy(alpha=w).scores({"base": BASE, "expert": FIRST, "anti": SECOND})
    assert torch.allclose(distribution(found), distribution(proxy), rtol=1e-12)


def test_emulated_fine_tuning_of_several_models():
    tuned = torch.stack([FIRST, BASE + FIRST])
    given = {"base": BASE, "tuned": tuned, "reference": SECOND}
    log = lambda t: t.log_softmax(-1)  # noqa: E731
    wanted = log(BASE) + 0.3 * (log(tuned[0]) - log(SECOND)) + 0.5 * (log(tuned[1]) - log(SECOND))
    found = lt.Emulated(weights=(0.3, 0.5)).scores(given)
    assert torch.allclose(distribution(found), distribution(wanted), rtol=1e-12)
    assert torch.equal(lt.Emulated(weights=(0.4,)).scores(given), lt.Emulated(weights=(0.4, 0.4)).scores(given))


def test_contrastive_scores_are_constant_where_the_models_agree():
    found = lt.Contrastive().scores({"tuned": FIRST, "pretrained": FIRST})
    assert set(found.unique().tolist()) == {0.0, -torch.inf}
    shifted = lt.Contrastive().scores({"tuned": FIRST, "pretrained": FIRST - 3})
    assert torch.allclose(shifted[shifted > -torch.inf], torch.tensor(3.0).double())


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_the_contrastive_mask_keeps_what_is_likely_enough(alpha):
    found = lt.Contrastive(alpha=alpha).scores({"tuned": FIRST, "pretrained": SECOND})
    p = distribution(FIRST)
    kept = p >= alpha * p.amax(-1, keepdim=True)
    if alpha == 1:
        kept = FIRST.amax(-1, keepdim=True) == FIRST
    assert torch.equal(found > -torch.inf, kept)
    assert torch.equal(found[kept], (FIRST - SECOND)[kept])


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_a_share_lies_between_nothing_and_all(alpha):
    with pytest.raises(lt.LuthierError, match="from 0 to 1"):
        lt.Contrastive(alpha=alpha)


@pytest.mark.parametrize("weights", [(), ("a",)])
def test_weights_are_numbers(weights):
    with pytest.raises(lt.LuthierError, match=r"emulated\.weights"):
        lt.Emulated(weights=weights)
