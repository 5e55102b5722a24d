from __future__ import annotations

import pytest
import torch

from luthier.models import fetch, load

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm():
    return load("smollm2-135m")


def test_smollm_is_whole_and_tied(smollm):
    assert sum(p.numel() for p in smollm.model.parameters()) == 134_515_008
    assert smollm.new_modules == []
    assert smollm.model.lm_head.weight is smollm.model.model.embed_tokens.weight


def test_smollm_answers_and_stops(smollm):
    tokenizer = smollm.processor
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = smollm.model.generate(**inputs, max_new_tokens=30, do_sample=False)[0]
    answer = tokenizer.decode(output[inputs["input_ids"].shape[1] :])
    assert "Paris" in answer and answer.endswith("<|im_end|>")


def test_smollm_tokens_are_those_it_was_trained_on(smollm):
    tokenizer = smollm.processor
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.startswith("<|im_start|>system\n") and "<|im_start|>user\nhi<|im_end|>\n" in text
    assert tokenizer("<|im_start|>user")["input_ids"][0] == 1
    assert tokenizer.tokenize("x =  5\n\n1.") == ["x", "Ġ=", "ĠĠ", "5", "ĊĊ", "1", "."]


def test_minilm_knows_what_is_alike():
    loaded = load("minilm-l6", task="embedding")
    assert sum(p.numel() for p in loaded.model.parameters()) == 22_713_216
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    inputs = loaded.processor(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = loaded.model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    alike, apart = (means[0] @ means[1]).item(), (means[0] @ means[2]).item()
    assert alike > 0.6 and apart < 0.2


def test_minilm_gets_a_new_classifier_only():
    assert load("minilm-l6", task="classification", num_labels=3).new_modules == ["classifier"]


def test_a_second_fetch_is_the_same_folder():
    assert fetch("smollm2-135m") == fetch("smollm2-135m")
