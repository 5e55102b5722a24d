"""An adapted model is still the model: the libraries around transformers take it unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

import luthier as lt
from support.architectures import ARCHITECTURES

FORMS = {"wegeft": lt.WeGeFT(rank=4, share="type"), "loreft": lt.LoReFT(rank=4, positions="f2+l2")}
WORDS = list("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def adapted(form, size: float = 0.0):
    model = lt.attach(ARCHITECTURES["llama"].build(), form)
    for parameter in lt.trainable(model).values():
        parameter.data += size * torch.randn_like(parameter)
    return model


def test_pipeline_generates_what_the_model_does(form, tokenizer):
    model = adapted(form, 0.3)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokenizer.padding_side = "left"
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["a b c d e f", "g h"]
    together = run(prompts, batch_size=2, return_full_text=False, **settings)
    for prompt, found in zip(prompts, together, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        alone = model.generate(input_ids=ids, **settings)[0, ids.shape[1] :]
        assert found[0]["generated_text"].split() == tokenizer.decode(alone, skip_special_tokens=True).split()


def rows(n: int = 8) -> list[dict]:
    ids = torch.arange(4, 14).tolist()
    return [{"input_ids": ids, "attention_mask": [1] * 10, "labels": [-100] * 5 + ids[5:]} for _ in range(n)]


def packed(form, folder):
    """The form on an NF4 copy of the base."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = dict(ARCHITECTURES["llama"].settings, hidden_size=64, intermediate_size=128, head_dim=16)
    replace(ARCHITECTURES["llama"], settings=settings).build().save_pretrained(folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return lt.attach(AutoModelForCausalLM.from_pretrained(folder, quantization_config=config), form)


@pytest.mark.parametrize("base", ["plain", "packed"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_trainer_fits_it(form, tmp_path, checkpointing, base):
    model = adapted(form) if base == "plain" else packed(form, tmp_path)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        logging_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", gradient_checkpointing=checkpointing,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert all(not p.requires_grad for n, p in model.named_parameters() if ".adapters." not in n)


def test_a_quantised_model_is_marked_only_as_long_as_something_trains(tmp_path):
    """transformers' Trainer refuses it otherwise; a mark of peft's own stays."""
    from luthier.core.adapters.swap import TRAINS

    form = lt.LoRA(rank=4)
    model = packed(form, tmp_path / "base")
    assert vars(model)[TRAINS]
    model.save_pretrained(tmp_path / "saved")
    assert vars(model)[TRAINS] and (tmp_path / "saved" / "config.json").is_file()
    lt.detach(model)
    assert TRAINS not in vars(model) and type(model).__name__ == "LlamaForCausalLM"
    vars(model)[TRAINS] = True
    assert vars(lt.detach(lt.attach(model, form)))[TRAINS]
    assert TRAINS not in vars(adapted(form))


def test_trl_fits_it(form, tokenizer, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    data = Dataset.from_list([{"prompt": "a b c d e", "completion": " f g h"}] * 8)
    config = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, learning_rate=1e-2, report_to="none",
        logging_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no", bf16=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=adapted(form), args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]


def test_it_saves_as_the_model_it_is(form, tmp_path):
    model = adapted(form, 0.1)
    base = {k: v for k, v in model.state_dict().items() if ".adapters." not in k}
    model.save_pretrained(tmp_path, state_dict=base)
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "LlamaForCausalLM"
    assert all(torch.equal(again.state_dict()[k], v) for k, v in base.items())
