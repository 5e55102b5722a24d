"""SmolLM2 with an adapter, in llama.cpp."""

from __future__ import annotations

import pytest
import torch

import luthier as lt

TEXT = "The history of the 12 bridges of Lyon, isn't it?\n\n  def f(x):\n    return x + 1000\n"


@pytest.mark.real
def test_llamacpp_writes_what_the_adapted_model_writes(tmp_path):
    pytest.importorskip("gguf")
    from support.llamacpp import Engine

    loaded = lt.model("smollm2-135m")
    model, tokenizer = loaded.model, loaded.processor
    lt.attach(model, lt.LoRA(rank=4), where="q_proj, v_proj")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.02 * torch.randn_like(parameter)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    lt.save(model, tmp_path / "adapter")
    lt.detach(model)
    to = lt.formats.GGUF(dtype="q8_0")
    lost = lt.export(tmp_path / "adapter", tmp_path / "out", to=to, base=model, processor=tokenizer)
    assert 0 < max(lost.values()) < 0.01
    engine = Engine(tmp_path / "out" / "model.gguf")
    assert engine.tokens(TEXT) == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    wanted = tokenizer.decode(ids, skip_special_tokens=True)
    assert engine.text("The capital of France is", 16).strip()[:24] == wanted.strip()[:24]
