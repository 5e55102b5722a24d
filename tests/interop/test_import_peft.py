"""peft's adapters become ours: the same outputs, there and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import luthier as lt
from support.architectures import ARCHITECTURES

peft = pytest.importorskip("peft")


def build(name: str, **settings):
    architecture = ARCHITECTURES[name]
    return dataclasses.replace(architecture, settings=architecture.settings | settings).build()


def output(model, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES[name].inputs()).logits


def fitted(name: str, config, **settings):
    """peft's model with every tensor of its own moved."""
    made = peft.get_peft_model(build(name, **settings), config).eval()
    for key, parameter in made.named_parameters():
        if parameter.requires_grad:
            parameter.data += (0.02 if "magnitude" in key else 0.1) * torch.randn_like(parameter)
    return made


def lora(*targets: str, **settings):
    return peft.LoraConfig(target_modules=list(targets), lora_alpha=settings.pop("lora_alpha", 12), **settings)


CASES = {
    "lora": ("llama", lora("q_proj", "v_proj", r=4, lora_dropout=0.1)),
    "every linear layer": ("llama", peft.LoraConfig(target_modules="all-linear", r=2)),
    "an expression": ("llama", peft.LoraConfig(target_modules=r".*\.1\.(self_attn|mlp)\.(q_proj|down_proj)$", r=2)),
    "some layers": ("llama", lora("q_proj", layers_to_transform=[0, 2])),
    "ranks and alphas": (
        "llama",
        lora("q_proj", "k_proj", "v_proj", r=4, rank_pattern={r"layers\.1\..*q_proj": 7}, alpha_pattern={"v_proj": 3}),
    ),
    "rslora": ("llama", lora("q_proj", r=4, use_rslora=True)),
    "rslora at two ranks": ("llama", lora("q_proj", "v_proj", r=4, rank_pattern={"v_proj": 9}, use_rslora=True)),
    "dora": ("qwen2", lora("q_proj", "down_proj", r=4, use_dora=True)),
    "Conv1D": ("gpt2", lora("c_attn", "c_proj", r=4, fan_in_fan_out=True)),
    "dora on Conv1D": ("gpt2", lora("c_attn", r=4, fan_in_fan_out=True, use_dora=True)),
    "a table": ("llama", lora("q_proj", "embed_tokens", r=4)),
    "biases": ("qwen2", lora("q_proj", r=4, bias="lora_only")),
    "a norm beside": ("llama", lora("q_proj", r=4, modules_to_save=["input_layernorm"])),
    "a new head": ("bert", lora("query", r=4, task_type="SEQ_CLS")),
    "ia3": (
        "llama",
        peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "ia3 on Conv1D": (
        "gpt2",
        peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_pefts(case, tmp_path):
    name, config = CASES[case]
    theirs = fitted(name, config)
    theirs.save_pretrained(tmp_path / "peft")
    base = build(name)
    plain = output(base, name)
    folder = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base, base_name="a base")
    assert torch.equal(output(base, name), plain)
    ours = lt.load(build(name), folder)
    wanted = output(theirs, name)
    assert (output(ours, name) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (plain - wanted).abs().max() > 1e-2
    spec = json.loads((folder / "adapter.json").read_text())
    assert spec["measured"]["imported"]["library"] == "peft" and spec["base"]["name"] == "a base"


def test_the_form_says_what_peft_said(tmp_path):
    fitted("llama", CASES["lora"][1]).save_pretrained(tmp_path / "peft")
    folder = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=build("llama"))
    (part,) = json.loads((folder / "adapter.json").read_text())["parts"]
    assert part["form"] == "lora" and part["where"] == "q_proj, v_proj"
    assert {"rank": 4, "alpha": 12.0, "dropout": 0.1, "scaling": "lora"}.items() <= part["settings"].items()


def test_a_pickle_of_tensors_is_read(tmp_path):
    theirs = fitted("llama", lora("q_proj", r=4))
    theirs.save_pretrained(tmp_path / "peft", safe_serialization=False)
    assert (tmp_path / "peft" / "adapter_model.bin").exists()
    folder = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=build("llama"))
    error = output(lt.load(build("llama"), folder), "llama") - output(theirs, "llama")
    assert error.abs().max() < 1e-5


ROUND = {
    "lora": (lt.LoRA(rank=3, scaling="rslora"), "all-linear"),
    "dora": (lt.DoRA(rank=3), "q_proj, up_proj"),
    "ia3": (lt.IA3(), "k_proj, v_proj | input(down_proj)"),
    "wegeft": (lt.WeGeFT(rank=3, share="type"), "q_proj, v_proj"),
    "hydra": (lt.Hydra(rank=3), "q_proj"),
    "a table": (lt.LoRA(rank=3), "embeddings | lm_head"),
}


@pytest.mark.parametrize("case", ROUND)
def test_there_and_back_the_outputs_stay(case, tmp_path):
    form, where = ROUND[case]
    model = lt.attach(build("llama"), form, where=where)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    lt.save(model, tmp_path / "first")
    base = build("llama")
    lt.export(tmp_path / "first", tmp_path / "peft", to="peft", base=base)
    lt.import_adapter(tmp_path / "peft", tmp_path / "second", base=base)
    wanted = output(model, "llama")
    error = output(lt.load(base, tmp_path / "second"), "llama") - wanted
    assert error.abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
