"""peft's target_parameters come in and answer as in peft itself."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from support.recorded import base, logits

peft = pytest.importorskip("peft")
EXPERTS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
CASES = {
    "mixtral": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "one of two": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:], "use_rslora": True}),
    "with a router": ("qwen3_moe", {"target_modules": [], "target_parameters": ["mlp.gate.weight", *EXPERTS]}),
}


def saved(name: str, config, folder):
    """What peft answers with an adapter that it saved in `folder`."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base(name), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.4 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return logits(model.eval())


@pytest.mark.parametrize("case", CASES)
def test_parameters_answer_as_in_peft(case, tmp_path):
    name, settings = CASES[case]
    wanted = saved(name, peft.LoraConfig(r=3, lora_alpha=4, **settings), tmp_path / "peft")
    ours = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base(name))
    assert (wanted - logits(base(name))).abs().max() > 0.05
    assert (logits(lt.load(base(name), ours)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_damage_is_refused(tmp_path):
    saved("mixtral", peft.LoraConfig(r=3, lora_alpha=4, **CASES["mixtral"][1]), tmp_path / "peft")
    file, told = tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft" / "adapter_config.json"
    whole, config = load_file(file), json.loads(told.read_text())

    def refused(match: str) -> None:
        with pytest.raises(lt.LuthierError, match=match):
            lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base("mixtral"))

    save_file({key: t for key, t in whole.items() if "base_layer" not in key}, file)
    refused("holds 1 changes of the parameters of .*and its configuration names 2")
    save_file({key: t[:, :-1].contiguous() if "experts.lora_A" in key else t for key, t in whole.items()}, file)
    refused("this base has")
    save_file(whole, file)
    told.write_text(json.dumps(config | {"target_parameters": "experts"}))
    refused("expected a list of names")
