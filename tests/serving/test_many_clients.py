"""Thirty-two clients at once over eight adapters: every answer is its adapter's own, and what it says alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench.serve_load import LESSONS, MARKS, PROMPTS, alone, load, unmarked

import luthier as lt
from luthier.data import Collator, Example, encode
from luthier.engine.engine import Engine
from support import tiny
from support.served import serving


def fit(model, tokenizer, mark: str, folder: Path) -> Path:
    """An adapter that begins its answers with its mark."""
    rows = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{mark}: {answer}"}]
        for asked, (_, answer) in zip(PROMPTS, LESSONS, strict=False)
    ]
    collate = Collator(tokenizer.pad_token_id)
    batch = collate([encode(Example(row=1, messages=row), tokenizer, max_length=None) for row in rows])
    lt.attach(model, lt.LoRA(rank=8), name=mark)
    optimiser = torch.optim.Adam(lt.trainable(model).values(), lr=2e-2)
    for _ in range(80):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    lt.save(model, folder)
    lt.detach(model)
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A tiny model, and eight adapters on it that begin their answers with their names."""
    folder = tmp_path_factory.mktemp("marked")
    name = tiny.save_model(folder / "base", "llama", tiny.TEMPLATE)
    loaded = lt.model(name)
    return name, {mark: fit(loaded.model, loaded.processor, mark, folder / mark) for mark in MARKS}


def test_many_clients(marked):
    name, adapters = marked
    loaded = lt.model(name, dtype="float64")
    expected = alone(loaded.model, loaded.processor, "base", adapters)
    assert unmarked(expected) == [] and len(expected) == 9
    assert len({text for answers in expected.values() for text in answers.values()}) >= 2 * len(MARKS)
    engine = Engine(loaded.model, loaded.processor, adapters=adapters, rows=16, waiting=32)
    engine.start()
    try:
        with serving(engine, tokenizer=loaded.processor) as address:
            tally = load(address, expected, clients=32, seconds=3, least=4)
    finally:
        engine.close()
    assert (tally.errors, tally.wrong_adapter, tally.unequal) == ([], [], [])
    assert tally.answers.total() >= 128 and set(tally.answers) == set(expected) and tally.streams > 32
