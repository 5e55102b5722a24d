"""A pool: what it keeps, what it refuses, and that nobody pays for another's mistakes."""

from __future__ import annotations

import re

import pytest
import torch

import luthier as lt
from luthier.core.adapters.attach import adapter_names, state_of
from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.training.together import Pool, Row, Work
from support.architectures import ARCHITECTURES

ROWS = [Row([5, 6, 7, 8, 9]), Row([3, 4, 5], [4, 5, 6])]


def summed(log_probs: list[torch.Tensor]) -> torch.Tensor:
    return -torch.stack([each.sum() for each in log_probs]).sum()


def pool_of(**forms: lt.Form) -> Pool:
    pool = Pool(ARCHITECTURES["llama"].build())
    for seed, (name, form) in enumerate(forms.items()):
        pool.add(name, form, seed=seed)
    return pool


def copies(pool: Pool, name: str) -> dict[str, torch.Tensor]:
    return {key.partition(".")[2]: t.detach().clone() for key, t in tensors(pool.model, name).items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[key]) for key, t in one.items())


def test_log_probs_are_those_of_the_rows():
    pool = pool_of(a=lt.LoRA(rank=4))
    (out,) = pool.forward_backward([Work("a", ROWS, summed)], backward=False)
    logits = pool.model(torch.tensor([[3, 4, 5]])).logits.log_softmax(-1)[0]  # a LoRA starts as a no-op
    assert torch.allclose(out.log_probs[1], logits[range(3), [4, 5, 6]], atol=1e-6)
    assert len(out.log_probs[0]) == 5 and out.log_probs[0][-1] == 0
    assert out.loss == pytest.approx(-float(sum(each.sum() for each in out.log_probs)), rel=1e-6)
    assert all(p.grad is None for p in tensors(pool.model).values())


def test_importance_sampling_has_its_gradient():
    """Σ advantage · exp(log p - log q): at q = p the gradient is that of the plain weighted sum."""
    pool = pool_of(a=lt.LoRA(rank=4), b=lt.LoRA(rank=4))
    (known,) = pool.forward_backward([Work("a", ROWS, summed)], backward=False)
    advantage = [torch.tensor([0.5, -1, 0.25, 2, 0]), torch.tensor([1.0, 2, -0.5])]

    def ratio(log_probs):
        parts = zip(log_probs, known.log_probs, advantage, strict=True)
        return -torch.stack([((p - q).exp() * a).sum() for p, q, a in parts]).sum()

    def weighted(log_probs):
        return -torch.stack([(p * a).sum() for p, a in zip(log_probs, advantage, strict=True)]).sum()

    for p, q in zip(tensors(pool.model, "a").values(), tensors(pool.model, "b").values(), strict=True):
        q.data.copy_(p)
    pool.forward_backward([Work("a", ROWS, ratio), Work("b", ROWS, weighted)])
    for p, q in zip(tensors(pool.model, "a").values(), tensors(pool.model, "b").values(), strict=True):
        assert p.grad is not None and torch.allclose(p.grad, q.grad, atol=1e-5)


def test_gradients_add_up_until_a_step_of_one_adapter_alone():
    pool = pool_of(a=lt.LoRA(rank=4), b=lt.LoRA(rank=2))
    pool.forward_backward([Work("a", ROWS[:1], summed), Work("b", ROWS, summed)])
    pool.forward_backward([Work("a", ROWS[1:], summed)])
    apart = {key: p.grad.clone() for key, p in tensors(pool.model, "a").items() if p.grad is not None}
    pool.step("b", 0.0)
    before = copies(pool, "a")
    assert all(torch.equal(p.grad, apart[key]) for key, p in tensors(pool.model, "a").items() if key in apart)
    for p in tensors(pool.model, "a").values():
        p.grad = None
    pool.forward_backward([Work("a", ROWS, summed)])
    for key, p in tensors(pool.model, "a").items():
        assert p.grad is not None and torch.allclose(p.grad, apart[key], atol=1e-5)
    assert pool.step("a", 1e-2)["grad_norm"] > 0 and pool.steps("a") == 1
    assert not equal(copies(pool, "a"), before) and all(p.grad is None for p in tensors(pool.model).values())


@pytest.mark.parametrize("pending", [False, True])
def test_what_is_saved_goes_on_bit_for_bit(tmp_path, pending):
    """Moments, dropout's stream, and gradients that wait for their step; beside others and after they left."""
    form = lt.LoRA(rank=4, dropout=0.4)
    pool = pool_of(a=form, b=form)
    works = [Work("a", ROWS, summed), Work("b", ROWS, summed)]

    def steps(pool: Pool, works: list[Work], count: int) -> list[float]:
        found = []
        for _ in range(count):
            found.append(pool.forward_backward(works)[0].loss)
            for work in works:
                assert work.name is not None
                pool.step(work.name, 1e-2, clip=1.0)
        return found

    steps(pool, works, 2)
    if pending:
        pool.forward_backward(works)
    pool.save("a", tmp_path / "a")
    expected = steps(pool, works, 2), copies(pool, "a")
    pool.load("a", tmp_path / "a")
    pool.load("again", tmp_path / "a")
    assert pool.names == ["a", "b", "again"] and pool.steps("again") == 2
    assert steps(pool, works, 2)[0] == expected[0][0] and not equal(copies(pool, "a"), copies(pool, "again"))
    fresh = Pool(ARCHITECTURES["llama"].build())
    fresh.load("a", tmp_path / "a")
    fresh.load("b", tmp_path / "a")
    assert steps(fresh, works, 2) == expected[0] and equal(copies(fresh, "a"), expected[1])
    assert adapter_names(state_of(lt.load(ARCHITECTURES["llama"].build(), tmp_path / "a", "plain"))) == ["plain"]


def test_a_folder_that_does_not_fit_leaves_the_pool_as_it_was(tmp_path):
    pool = pool_of(a=lt.LoRA(rank=4), b=lt.LoRA(rank=2))
    pool.save("a", tmp_path / "bare", optimizer=False)
    pool.save("a", tmp_path / "a")
    pool.save("b", tmp_path / "b")
    with pytest.raises(LuthierError, match="optimizer=False"):
        pool.load("a", tmp_path / "bare")
    pool.load("a", tmp_path / "bare", optimizer=False)
    for file in (tmp_path / "b" / "training").iterdir():
        (tmp_path / "a" / "training" / file.name).write_bytes(file.read_bytes())
    before = copies(pool, "a")
    with pytest.raises(LuthierError, match="checksums"):
        pool.load("a", tmp_path / "a")
    with pytest.raises(LuthierError, match="checksums"):
        pool.load("c", tmp_path / "a")
    assert equal(copies(pool, "a"), before) and pool.names == ["a", "b"]
    assert adapter_names(state_of(pool.model)) == ["b", "a"]
    pool.save("a", tmp_path / "b", optimizer=False)
    assert not (tmp_path / "b" / "training").exists()


WRONG = {
    "no rows": ([], summed, "no rows"),
    "no tokens": ([Row([])], summed, "0 tokens"),
    "a strange token": ([Row([1000])], summed, "the token 1000"),
    "a strange target": ([Row([5], [97])], summed, "the target 97"),
    "targets of another length": ([Row([5, 6], [1])], summed, "1 targets"),
    "too long": ([Row([5] * 129)], summed, "129 tokens"),
    "a loss that raises": (ROWS, lambda log_probs: log_probs[9], "IndexError"),
    "a loss of many numbers": (ROWS, lambda log_probs: log_probs[0], r"\(5,\) numbers"),
    "no tensor": (ROWS, lambda log_probs: 1.0, "float"),
    "not a number": (ROWS, lambda log_probs: summed(log_probs) * torch.nan, "is nan"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_work_is_told_and_costs_others_nothing(what):
    rows, loss, words = WRONG[what]
    pool, lonely = pool_of(a=lt.LoRA(rank=4), b=lt.LoRA(rank=4)), pool_of(a=lt.LoRA(rank=4))
    outcomes = pool.forward_backward([Work("a", ROWS, summed), Work("b", rows, loss)])
    lonely.forward_backward([Work("a", ROWS, summed)])
    assert outcomes[0].error is None
    assert re.search(words, outcomes[1].error or "")
    assert outcomes[1].diverged == (what == "not a number")
    for key, p in tensors(lonely.model, "a").items():
        grad = tensors(pool.model, "a")[key].grad
        assert grad is not None and p.grad is not None and torch.allclose(grad, p.grad, rtol=1e-5, atol=1e-6)
    assert all(not p.grad.any() for p in tensors(pool.model, "b").values() if p.grad is not None)


def test_an_adapter_that_cannot_be_computed_stops_alone():
    """LoReFT factorises its tensors, and NaN has no factors; the others' dropout is drawn once."""
    dropping = lt.LoRA(rank=4, dropout=0.5)
    pool, lonely = pool_of(a=dropping, b=lt.LoReFT(rank=2)), pool_of(a=dropping)
    for p in tensors(pool.model, "b").values():
        p.data.fill_(torch.nan)
    for _ in range(2):
        found = pool.forward_backward([Work("b", ROWS, summed), Work("a", ROWS, summed)])
        (expected,) = lonely.forward_backward([Work("a", ROWS, summed)])
        assert "'b'" in (found[0].error or "") and found[1].loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_gradient_that_is_not_finite_makes_no_step():
    pool = pool_of(a=lt.LoRA(rank=4), b=lt.LoRA(rank=4))
    before = copies(pool, "a")

    def steep(log_probs):
        zero = (log_probs[0] * 0).sum()
        return summed(log_probs) + torch.where(zero == 0, 0 * zero, zero / zero) + zero.abs().sqrt()

    outcomes = pool.forward_backward([Work("a", ROWS, steep), Work("b", ROWS, summed)])
    assert outcomes[0].error is None
    with pytest.raises(LuthierError, match="norm nan"):
        pool.step("a", 1e-2)
    assert equal(copies(pool, "a"), before) and pool.steps("a") == 0
    assert pool.step("b", 1e-2)["grad_norm"] > 0


def test_names_that_are_not_there_or_taken():
    pool = pool_of(first=lt.LoRA(rank=2))
    with pytest.raises(LuthierError, match="'first'"):
        pool.forward_backward([Work("frist", ROWS, summed)])
    with pytest.raises(LuthierError, match="already"):
        pool.add("first", lt.LoRA())
    pool.remove("first")
    assert pool.names == [] and pool.forward_backward([Work(None, ROWS, summed)])[0].error is None
    assert pool.forward_backward([]) == []


def test_models_that_cannot_and_recomputed_activations():
    with pytest.raises(LuthierError, match="causal language model"):
        Pool(ARCHITECTURES["bert"].build())
    pool = pool_of(a=lt.LoRA(rank=2))
    pool.model.gradient_checkpointing_enable()
    with pytest.raises(LuthierError, match="recomputes"):
        pool.forward_backward([Work("a", ROWS, summed)])


def test_nothing_stays_switched():
    pool = pool_of(a=lt.LoRA(rank=2), b=lt.LoRA(rank=2))
    for p in tensors(pool.model).values():
        p.data += 0.1
    lt.use(pool.model, "b")
    ids = torch.tensor([[5, 6, 7]])
    before = pool.model(ids).logits
    pool.forward_backward([Work("a", ROWS, summed)])
    assert torch.equal(pool.model(ids).logits, before) and not pool.model.training
