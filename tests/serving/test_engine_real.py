"""The engine on real weights: what is decoded together is what is decoded alone."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.engine.answers import answers
from luthier.engine.engine import Engine
from luthier.engine.request import Chunk, Request
from luthier.engine.settings import Sampling

pytestmark = pytest.mark.real

PROMPTS = ["The capital of France is", "1, 2, 3, 4, 5, 6, 7,", "def add(a, b):\n    return", "Once upon a time"]


def test_mixed_rows_on_real_weights(tmp_path):
    loaded = lt.model("smollm2-135m", task="causal-lm")
    forms = {"lora": lt.LoRA(rank=8), "loreft": lt.LoReFT(rank=4, positions="f2+l2")}
    for seed, (name, form) in enumerate(forms.items()):
        lt.attach(loaded.model, form, name=name)
        draw = torch.Generator().manual_seed(seed)
        for parameter in lt.trainable(loaded.model).values():
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=draw)
        lt.save(loaded.model, tmp_path / name, name)
        lt.detach(loaded.model)
    folders = {name: tmp_path / name for name in forms}
    names = ["lora", "loreft", None, "lora"]
    ids = [loaded.processor(prompt)["input_ids"] for prompt in PROMPTS]
    engine = Engine(loaded.model, loaded.processor, adapters=folders, rows=3)
    texts = ["" for _ in PROMPTS]

    def deliver_to(row: int):
        def deliver(chunk: Chunk) -> None:
            assert chunk.error is None
            texts[row] += chunk.text

        return deliver

    engine.start()
    for row, (prompt, name) in enumerate(zip(ids, names, strict=True)):
        engine.submit(Request(tuple(prompt), name, max_tokens=16, temperature=0), deliver_to(row))
    assert engine.drain(60)
    engine.close()
    for row, name in enumerate(names):
        lt.use(loaded.model, [name] if name else [])
        (alone,) = answers(loaded.model, loaded.processor, [ids[row]], Sampling(max_new_tokens=16), 1)
        assert texts[row] == alone
