"""Whole models that we write say what transformers 5 has moved also where older readers look."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from luthier.models.older import for_older_readers, older_tokenizer
from support.architectures import ARCHITECTURES

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
CASES = [
    ("llama", {"rope_theta": 500000.0, "rope_type": "default"}, {"rope_theta": 500000.0}),
    (
        "llama",
        {"rope_theta": 500000.0, "rope_type": "llama3", **LLAMA3},
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    (
        "qwen2",
        {"rope_theta": 1e6, "rope_type": "yarn", **YARN},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}},
    ),
    (
        "phi3",
        {"rope_theta": 7e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_theta": 7e4, "partial_rotary_factor": 0.5},
    ),
    (
        "gpt_neox",
        {"rope_theta": 5e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
    ),
    (
        "gemma3",
        {
            "full_attention": {"rope_theta": 3e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
        },
        {"rope_theta": 3e6, "rope_local_base_freq": 2e4},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rope", "wanted"), CASES)
def test_rotary_settings_stand_at_both_places_and_mean_the_same(name, rope, wanted, tmp_path):
    from transformers import AutoModelForCausalLM

    architecture = ARCHITECTURES[name]
    model = dataclasses.replace(architecture, settings=architecture.settings | {"rope_parameters": rope}).build()
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    for_older_readers(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert wanted.items() <= written.items() and before.items() <= written.items()
    assert written["torch_dtype"] == "float32"
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.rope_parameters == model.config.rope_parameters
    ids = torch.arange(3, 90)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_text_part_of_a_model_of_several_parts_is_told_too():
    from luthier.models.older import older_config

    rope = {"rope_theta": 1e6, "rope_type": "default"}
    found = older_config({"model_type": "llava", "dtype": "bfloat16", "text_config": {"rope_parameters": rope}})
    assert found["text_config"]["rope_theta"] == 1e6 and found["torch_dtype"] == "bfloat16"


def test_a_tokenizer_goes_by_the_names_that_transformers_4_knows():
    found = older_tokenizer({"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"], "eos_token": "b"})
    assert found == {
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"], "eos_token": "b",
    }  # fmt: skip


def test_the_scaling_of_the_far_layers_is_told():
    from luthier.models.older import older_config

    near = {"rope_type": "default", "rope_theta": 1e4}
    far = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    rope = {"sliding_attention": near, "full_attention": far}
    found = older_config({"model_type": "gemma3_text", "rope_parameters": rope})
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    plain = older_config({"model_type": "gemma3_text", "rope_parameters": rope | {"full_attention": near}})
    assert "rope_scaling" not in plain
