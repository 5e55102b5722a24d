"""The iterated form of contrastive generation: a step on each text, and hidden domains that one pass does not reach."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.decoding import Member, answers
from luthier.decoding.iterated import iterated, refuse_rounds
from luthier.engine.settings import Sampling
from luthier.methods.decodings.contrastive import Contrastive
from support.architectures import ARCHITECTURES
from support.tiny import tokenizer

DOMAINS = {"a": 80, "b": 12, "c": 5, "d": 3}
"""Rows of the fine-tuning data that repeat a letter."""


def fit(model, texts: list[str], steps: int):
    words = tokenizer()
    ids = torch.tensor([words(".." + text)["input_ids"] for text in texts])
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[Member, Member]:
    """(tuned, pre-trained): the first adds four domains of unequal size to the general texts of the second."""
    general = [letter * 4 for letter in "efghijklmnopqrst"]
    base, tuned = (ARCHITECTURES["llama"].build() for _ in range(2))
    fit(base, [*general * 3, *["aaaa", "bbbb", "cccc", "dddd"]], 80)
    tuned.load_state_dict(base.state_dict())
    hidden = [letter * 4 for letter, count in DOMAINS.items() for _ in range(count)]
    fit(tuned, [*hidden, *general], 60)
    words = tokenizer()
    return Member(tuned, words), Member(base, words)


def covered(turns) -> list[set[str]]:
    """The hidden domains seen after each round."""
    seen: set[str] = set()
    found = []
    for turn in turns:
        seen = seen | {letter for answer in turn for letter in DOMAINS if answer.text.startswith(letter * 2)}
        found.append(seen)
    return found


def test_iterating_covers_more_hidden_domains_than_one_pass(pair):
    tuned, base = pair
    members = {"tuned": [tuned], "pretrained": [base]}
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    by, prompts = Contrastive(alpha=0.001), [".."] * 2
    reached = {"once": 0, "iterated": 0}
    for seed in (0, 100, 200):
        sampling = Sampling(4, 1.0, 1.0, seed)
        turns = iterated(by, members, prompts, sampling, rounds=6, lr=3e-3)
        plain = [answers(by, members, prompts, Sampling(4, 1.0, 1.0, seed + turn)) for turn in range(6)]
        assert [each.text for each in plain[0]] == [each.text for each in turns[0]]  # the first round is one pass
        reached["once"] += len(covered(plain)[-1])
        reached["iterated"] += len(covered(turns)[-1])
    assert reached["iterated"] >= reached["once"] + 2, reached
    assert all(torch.equal(value, before[key]) for key, value in base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_a_step_makes_what_was_said_less_new(pair):
    """After rounds of one domain, its first token scores lower than before, as the equation says."""
    tuned, base = pair
    seen = []

    class Watched(Contrastive):
        def scores(self, logits):
            seen.append(logits["pretrained"][0].log_softmax(-1))
            return super().scores(logits)

    words, turns = (
        tokenizer(),
        iterated(Watched(), {"tuned": [tuned], "pretrained": [base]}, [".."], Sampling(1, 1.0), rounds=2),
    )
    said = words(turns[0][0].text)["input_ids"][0]
    assert float(seen[1][said]) > float(seen[0][said])


def test_what_cannot_iterate_is_refused(pair):
    tuned, base = pair
    warm = Sampling(4, 1.0)
    with pytest.raises(lt.LuthierError, match="temperature"):
        refuse_rounds(Contrastive(), 3, 1e-4, Sampling(4))
    with pytest.raises(lt.LuthierError, match="learns from what is said"):
        refuse_rounds(lt.decodings.Proxy(), 3, 1e-4, warm)
    with pytest.raises(lt.LuthierError, match="draft"):
        refuse_rounds(Contrastive(), 3, 1e-4, warm, draft=2)
    with pytest.raises(lt.LuthierError, match="another role"):
        iterated(
            Contrastive(),
            {"tuned": [tuned], "pretrained": [Member(tuned.model, tuned.tokenizer)]},
            ["."],
            warm,
            rounds=2,
        )
    with pytest.raises(lt.LuthierError, match="expected"):
        refuse_rounds(Contrastive(), 0, 1e-4, warm)
    assert base.adapter is None
