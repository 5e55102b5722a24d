"""peft's VeRA, LoHa and LoKr come in as LoRA and answer as in peft itself."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from support.recorded import base, logits

peft = pytest.importorskip("peft")
LINEAR = ["q_proj", "v_proj", "down_proj"]
CASES = {
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=LINEAR)),
    "vera on gpt2": ("gpt2", lambda: peft.VeraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=LINEAR, rank_pattern={"v_proj": 3})),
    "loha of full rank": ("llama", lambda: peft.LoHaConfig(r=6, alpha=3, target_modules=LINEAR)),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=LINEAR, alpha_pattern={"q_proj": 5})),
    "lokr of both": ("llama", lambda: peft.LoKrConfig(r=1, alpha=3, target_modules=LINEAR, decompose_both=True)),
    "lokr of whole ones": ("llama", lambda: peft.LoKrConfig(r=20, alpha=3, target_modules=LINEAR, decompose_factor=2)),
    "lokr with a head": (
        "llama",
        lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=LINEAR, modules_to_save=["lm_head"]),
    ),
}


def saved(case: str, folder):
    """What peft answers with an adapter that it saved in `folder`."""
    name, config = CASES[case]
    model = peft.get_peft_model(base(name), config())
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.requires_grad:
            parameter.data = 0.6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(turn))
    model.save_pretrained(folder)
    return logits(model.eval())


@pytest.mark.parametrize("case", CASES)
def test_they_answer_as_in_peft(case, tmp_path):
    name = CASES[case][0]
    wanted = saved(case, tmp_path / "peft")
    ours = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base(name))
    assert (wanted - logits(base(name))).abs().max() > 0.05
    assert (logits(lt.load(base(name), ours)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("case", "key", "change", "why"),
    [
        ("vera", "vera_A", None, "peft draws anew then"),
        ("vera", "vera_lambda_d", lambda t: t[:-1], "do not fit each other"),
        ("loha", "hada_w1_b", lambda t: t[:-1], "do not fit each other"),
        ("loha", "hada_w2_a", None, "expected w1_a, w1_b, w2_a, w2_b"),
        ("lokr", "lokr_w1", lambda t: t[0], "this base expects|do not fit"),
        ("lokr", "lokr_w1", None, "expected w1, w2 or"),
    ],
)
def test_damage_is_refused(case, key, change, why, tmp_path):
    saved(case, tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_model.safetensors"
    held = {k: change(t).contiguous() if change and key in k else t for k, t in load_file(file).items()}
    save_file({k: t for k, t in held.items() if change or key not in k}, file)
    with pytest.raises(lt.LuthierError, match=why):
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base("llama"))


def test_another_alpha_is_refused(tmp_path):
    saved("loha", tmp_path / "peft")
    told = tmp_path / "peft" / "adapter_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"alpha": "much"}))
    with pytest.raises(lt.LuthierError, match="expected a finite number"):
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base("llama"))
