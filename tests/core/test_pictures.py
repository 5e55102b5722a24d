"""Models that read pictures beside text: what `where` means there, and that every form is met, saved and merged."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from torch import Tensor

import luthier as lt
from luthier.core.sites.probe import dummy_inputs

TEXT = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLACES = {"image_token_id": 90}


def llava():
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing = tf.CLIPVisionConfig(**vision, image_size=16, patch_size=8)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=seeing, text_config=tf.LlamaConfig(**TEXT), **PLACES)
    )


def qwen2_vl():
    seeing = {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6}
    marks = {"video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    config = tf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=seeing, **PLACES, **marks)
    return tf.Qwen2VLForConditionalGeneration(config)


MODELS = {"llava": llava, "qwen2_vl": qwen2_vl}
SEEING = {"llava": "vision_tower.*", "qwen2_vl": "visual.*"}
FORMS = [
    (lt.LoRA(rank=2), None),
    (lt.WeGeFT(rank=2), None),
    (lt.LoReFT(rank=2), None),
    (lt.Full(), "params(*self_attn.q_proj.weight)"),
]


def built(name: str):
    torch.manual_seed(0)
    return MODELS[name]().eval()


def logits(model) -> Tensor:
    with torch.no_grad():
        return model(**dummy_inputs(model)).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_words_mean_the_language_model(name):
    model = built(name)
    assert "pixel_values" in dummy_inputs(model)
    for where, count in (
        ("all-linear", 21),
        ("stream", 3),
        ("all-linear & layers(-1)", 7),
        ("stream & layers(0, 1)", 2),
    ):
        sites = lt.select(model, where)
        assert len(sites) == count and all("language_model" in site.path for site in sites)
    seen = lt.select(model, SEEING[name])
    assert seen and not any("language_model" in site.path for site in seen)
    assert {site.layer for site in lt.select(model, f"{SEEING[name]} & layers(0)")} == {0}


@pytest.mark.parametrize(("form", "where"), FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_forms_train_are_saved_and_come_back(name, form, where, tmp_path):
    model = built(name)
    plain = logits(model)
    lt.attach(model, form, where=where)
    inputs = dummy_inputs(model)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = lt.trainable(model)
    # what sees may leave its last layers unread, as LLaVA's does
    assert trained and all(p.grad is not None for key, p in trained.items() if "vision" not in key)
    for parameter in trained.values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    moved = logits(model.eval())
    assert not torch.allclose(moved, plain, atol=1e-4)
    lt.save(model, tmp_path / "adapter")
    fresh = lt.load(built(name), tmp_path / "adapter")
    assert torch.allclose(logits(fresh), moved, atol=1e-6)
    if isinstance(form, lt.LoReFT):
        with pytest.raises(lt.LuthierError, match="cannot be merged"):
            lt.merge(fresh)
        return
    lt.merge(fresh)
    assert torch.allclose(logits(fresh), moved, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_part_that_sees_is_adapted_where_it_is_named(name):
    model = built(name)
    plain = logits(model)
    lt.attach(model, lt.LoRA(rank=2), where=SEEING[name])
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    assert not torch.allclose(logits(model), plain, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_loaded_for_text_and_merged_whole(name, tmp_path):
    from luthier.interop.formats._merged import save_merged
    from luthier.models import load, task_of_class
    from support.tiny import tokenizer

    built(name).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    loaded = load(str(tmp_path / "base"))
    assert type(loaded.model).__name__ == type(built(name)).__name__ and loaded.new_modules == []
    assert task_of_class(type(loaded.model).__name__) == "causal-lm"
    lt.attach(loaded.model, lt.LoRA(rank=2))
    for parameter in lt.trainable(loaded.model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    wanted = logits(loaded.model)
    save_merged(loaded.model, loaded.processor, tmp_path / "merged")
    assert torch.allclose(logits(load(str(tmp_path / "merged")).model), wanted, atol=1e-4)
    text = json.loads((tmp_path / "merged" / "config.json").read_text())["text_config"]
    assert text["rope_theta"] == (1e6 if name == "qwen2_vl" else 10000.0)
