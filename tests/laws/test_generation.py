"""Greedy answers by the engine's batches are those of transformers' own loop, for every architecture it decodes."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.engine.answers import _by_batches, _by_engine, _engine, answers
from luthier.engine.settings import Sampling
from luthier.models import positions
from support.architectures import ARCHITECTURES
from support.tiny import tokenizer
from support.tiny_pictures import MODELS, built

GENERATORS = [name for name, each in ARCHITECTURES.items() if each.kind in ("decoder", "seq2seq")]
SINGLE = ("mixtral", "qwen3_moe", "bloom")
"""Models that transformers does not run in float64."""
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14], [15, 16, 17, 18], [19, 20, 21]]


@pytest.mark.parametrize("name", [*GENERATORS, *MODELS])
def test_rows_that_join_and_leave_say_what_transformers_says(name):
    if name in MODELS:
        model = built(name).eval().to(torch.float64)
    else:
        model = ARCHITECTURES[name].build(dtype=torch.float32 if name in SINGLE else torch.float64).eval()
    lt.attach(model, lt.LoRA(rank=2), "all-linear", check=False)
    draw = torch.Generator().manual_seed(1)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    words, sampling = tokenizer(), Sampling(6)
    known = _by_batches(model, words, PROMPTS, sampling, 2, int, None)
    engine = _engine(model, words, 2)
    if engine is not None:
        heard: list[int] = []
        assert _by_engine(engine, PROMPTS, sampling, positions(model), heard.append) == known
        assert sum(heard) == len(PROMPTS)
    assert answers(model, words, PROMPTS, sampling, 3) == [text for text, _ in known]
    assert engine is not None or name in ("t5", "bart", *MODELS), "the engine once decoded it"


def test_a_draw_follows_from_its_seed_and_place_and_not_from_the_batch():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64).eval()
    sampled = Sampling(8, temperature=1.0, seed=3)
    found = answers(model, tokenizer(), PROMPTS, sampled, 1)
    assert found == answers(model, tokenizer(), PROMPTS, sampled, 5)
    assert found[:2] == answers(model, tokenizer(), PROMPTS[:2], sampled, 2)
    assert found != answers(model, tokenizer(), PROMPTS, Sampling(8, temperature=1.0, seed=4), 5)
