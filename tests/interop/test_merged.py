"""The merged folder: what transformers loads is the adapted model, in the base's dtype, with its tokenizer."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from support.shipped import build, byte_level, logits, moved


def merged(tmp_path, form, where, dtype=torch.float32):
    model = moved(lt.attach(build("qwen2", vocab_size=424).to(dtype), form, where=where))
    model.generation_config.top_k = 7
    lt.save(model, tmp_path / "adapter")
    base = build("qwen2", vocab_size=424).to(dtype)
    base.generation_config.top_k = 7
    weights = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    lost = lt.export(tmp_path / "adapter", tmp_path / "out", to="merged", base=base, processor=byte_level())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    return model, lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_the_adapted_model(dtype, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, lost = merged(tmp_path, lt.DoRA(rank=2), "q_proj, down_proj", dtype)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in theirs.parameters()} == {dtype}
    error = (logits(theirs.eval()) - logits(model)).abs().max() / logits(model).abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 5e-2)
    assert all(value < (1e-5 if dtype is torch.float32 else 5e-2) for value in lost.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "out").top_k == 7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_it_wants_a_tokenizer_and_a_form_that_merges(tmp_path):
    lt.save(lt.attach(build("llama"), lt.LoReFT(rank=2)), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match="pass processor"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="merged", base=build("llama"))
    with pytest.raises(lt.LuthierError, match="cannot be merged"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="merged", base=build("llama"), processor=byte_level())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
