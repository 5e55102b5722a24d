"""Models that read pictures beside text: what `where` means there, and that every form is met, saved and merged."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import luthier as lt
from luthier.core.sites.probe import dummy_inputs
from support.tiny_pictures import MODELS, built

SEEING = {"llava": "vision_tower.*", "qwen2_vl": "visual.*"}
FORMS = [
    (lt.LoRA(rank=2), None),
    (lt.WeGeFT(rank=2), None),
    (lt.LoReFT(rank=2), None),
    (lt.Full(), "params(*self_attn.q_proj.weight)"),
]


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


SEES = {"llava": "2 in vision_tower, 3 in language_model", "qwen2_vl": "2 in visual, 3 in language_model"}
NAMED = {"llava": "q_proj", "qwen2_vl": "attn.qkv | q_proj"}


@pytest.mark.parametrize("name", MODELS)
def test_the_overview_says_which_parts_a_bare_name_means(name, tmp_path, capsys):
    """A name of a layer may stand for layers of the part that sees as well; `all-linear` is the language model's."""
    from luthier.cli import main
    from support.tiny import sums, tokenizer, write_rows

    built(name).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", sums(4))
    train = ["train", tmp_path / "base", rows, "--method", "lora", "--eval-fraction", 0, "--dry-run", "--where"]
    show = ["show", tmp_path / "base", "--where"]

    def told(words, where: str) -> str:
        assert main([*map(str, words), where]) == 0, capsys.readouterr().err
        return " ".join(capsys.readouterr().out.split())

    for words in (train, show):
        both = told(words, NAMED[name])
        assert SEES[name] in both and "'(…) & language_model.*' as where takes those of language_model alone" in both
        one = told(words, f"({NAMED[name]}) & language_model.*")
        assert "3 in language_model" in one and "alone" not in one
        assert "21 in language_model" in told(words, "all-linear")


def test_a_row_of_several_pictures_is_made_too():
    """Idefics 3 and SmolVLM read pictures by the row; without one, an adapter of what sees would be met by no pass."""
    import transformers

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "num_key_value_heads": 1, "vocab_size": 64, "pad_token_id": 0, **size}
    config = transformers.Idefics3Config(
        text_config=text, vision_config={"image_size": 28, "patch_size": 14, **size}, image_token_id=60
    )
    model = transformers.Idefics3ForConditionalGeneration(config)
    assert dummy_inputs(model)["pixel_values"].shape == (1, 1, 3, 28, 28)
    lt.attach(model, lt.LoRA(rank=2), where="vision_model.*q_proj")
