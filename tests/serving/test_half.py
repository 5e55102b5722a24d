"""Bases and adapters of two bytes a number: saved, loaded, merged and served as they are."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find
from luthier.engine.engine import Engine
from luthier.engine.request import Chunk, Request
from support import tiny
from support.architectures import ARCHITECTURES

HALF = [torch.float16, torch.bfloat16]


def base(dtype: torch.dtype):
    made = ARCHITECTURES["llama"].build().to(dtype)
    made.generation_config.eos_token_id = 2
    return made


def fitted(form: str, dtype: torch.dtype, trained: torch.dtype):
    """A base of one dtype under an adapter of another, whose values are drawn."""
    model = lt.attach(base(dtype), find("forms", form)(), name="a")
    draw = torch.Generator().manual_seed(0)
    for parameter in lt.trainable(model).values():
        parameter.data = (parameter.data + 0.1 * torch.randn(parameter.shape, generator=draw)).to(trained)
    return model


@pytest.mark.parametrize("trained", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("form", ["lora", "dora", "wegeft", "loreft"])
def test_saved_and_loaded(form, dtype, trained, tmp_path):
    model = fitted(form, dtype, trained)
    ids = torch.tensor([[5, 6, 7, 8]])
    folder = lt.save(model, tmp_path / "adapter")
    stored = load_file(folder / "adapter.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} <= {trained, torch.float32, dtype}
    again = lt.load(base(dtype), folder, "a")
    own, other = (lt.trainable(each) for each in (model, again))
    assert own.keys() == other.keys() and all(torch.equal(own[k].double(), other[k].double()) for k in own)
    with torch.no_grad():
        adapted, reread, bare = (each(ids).logits.float() for each in (model, again, base(dtype)))
    # once loaded an adapter computes in float32, whatever its file holds: equal values, rounded less
    assert float((adapted - reread).abs().max()) < 0.2 * float((adapted - bare).abs().max())
    if trained == torch.float32:
        assert torch.equal(adapted, reread)


@pytest.mark.parametrize("trained", [torch.float16, torch.float32])
@pytest.mark.parametrize("form", ["lora", "dora", "loreft"])
def test_served_in_float16(form, trained, tmp_path):
    folder = lt.save(fitted(form, torch.float16, trained), tmp_path / "adapter")
    engine = Engine(base(torch.float16), tiny.tokenizer(), adapters={"a": folder}, rows=4)
    chunks: list[list[Chunk]] = [[] for _ in range(4)]
    prompts = [tuple(tiny.tokenizer().encode(text)) for text in ("ab", "the quick brown", "12+3=", "x")]
    for prompt, name, found in zip(prompts, ["a", None, "a", None], chunks, strict=True):
        engine.submit(Request(prompt, name, max_tokens=6, temperature=0, logprobs=0), found.append)
    engine.start()
    assert engine.drain(60)
    engine.close()
    assert [found[-1].finish in ("length", "stop") for found in chunks] == [True] * 4
    single = lt.load(base(torch.float16), folder, "a")
    for prompt, name, found in zip(prompts, ["a", None, "a", None], chunks, strict=True):
        first = next(token for chunk in found for token in chunk.tokens)
        with torch.no_grad():
            ids = torch.tensor([prompt])
            if name is None:
                with lt.disabled(single):
                    logits = single(ids).logits[0, -1]
            else:
                logits = single(ids).logits[0, -1]
        wanted = logits.float().log_softmax(-1)
        assert abs(first.logprob - float(wanted[first.id])) < 0.05 and float(wanted.max() - wanted[first.id]) < 0.05
