"""Adapters on fused experts and routers leave as peft's `target_parameters`, and peft itself answers the same."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

import luthier as lt
from support.recorded import base, logits
from support.shipped import moved

peft = pytest.importorskip("peft")
BOTH = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
CASES = {
    "experts": ("mixtral", [(lt.LoRA(rank=3, alpha=5.0), "experts")], BOTH),
    "rsLoRA beside attention": ("qwen3_moe", [(lt.LoRA(rank=2, scaling="rslora"), "experts, q_proj")], BOTH),
    "one of two": ("mixtral", [(lt.LoRA(rank=2), "params(mlp.experts.down_proj)")], BOTH[:1]),
    "of one block": (
        *("mixtral", [(lt.LoRA(rank=2), "experts & layers(1)")]),
        [f"model.layers.1.{name}" for name in BOTH],
    ),
    "a router": ("qwen3_moe", [(lt.LoRA(rank=2), "params(mlp.gate.weight), experts")], [*BOTH, "mlp.gate.weight"]),
    "two ranks": (
        *("olmoe", [(lt.LoRA(rank=2), "params(mlp.experts.down_proj)"), (lt.LoRA(rank=3), "params(*gate_up_proj)")]),
        BOTH,
    ),
    "[experts, in, out]": ("gpt_oss", [(lt.LoRA(rank=2), "experts, v_proj")], BOTH),
    "another form": ("mixtral", [(lt.WeGeFT(rank=2), "experts")], BOTH),
    "a dense layer's weight": ("llama", [(lt.LoRA(rank=2), "params(q_proj.weight)")], None),
}


def exported(pieces, name: str, folder, **settings):
    """(what our adapter answers, what the export lost) of one that is written to `folder`/peft."""
    model = base(name)
    for form, where in pieces:
        lt.attach(model, form, where=where)
    lt.save(moved(model.eval(), 0.3), folder / "adapter")
    return logits(model), lt.export(
        folder / "adapter", folder / "peft", to=lt.formats.PEFT(**settings), base=base(name)
    )


@pytest.mark.parametrize("case", CASES)
def test_peft_answers_the_same(case, tmp_path):
    name, pieces, named = CASES[case]
    wanted, lost = exported(pieces, name, tmp_path)
    assert lost == {} and (wanted - logits(base(name))).abs().max() > 0.05
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert told.get("target_parameters") == named
    theirs = peft.PeftModel.from_pretrained(base(name), tmp_path / "peft").eval()
    assert (logits(theirs) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    back = lt.import_adapter(tmp_path / "peft", tmp_path / "back", base=base(name))
    assert (logits(lt.load(base(name), back)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_names_and_layout_are_pefts(tmp_path):
    """Nested wrappers, the first parameter innermost; expert e has rows e r … of A and columns e, e + E, … of B."""
    exported(CASES["experts"][1], "mixtral", tmp_path)
    held = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    ours = load_file(tmp_path / "adapter" / "adapter.safetensors")
    layer, rank, experts = "model.layers.1.mlp.experts", 3, 4
    for inner, name in (("", "down_proj"), (".base_layer", "gate_up_proj")):
        a, b = (held[f"base_model.model.{layer}{inner}.lora_{which}.weight"] for which in "AB")
        own = {
            end: next(t for key, t in ours.items() if f"{layer}.{name}" in key and key.endswith(end)) for end in "AB"
        }
        for expert in range(experts):
            assert a[expert * rank : (expert + 1) * rank].equal(own["A"][expert])
            assert b[:, expert::experts].equal(own["B"][expert] * (5.0 / rank))


def test_other_forms_are_truncated_where_that_is_asked_for(tmp_path):
    wanted, lost = exported(
        [(lt.DoRA(rank=1), "params(mlp.experts.down_proj)")], "mixtral", tmp_path, rank=9, tolerance=0.9
    )
    assert set(lost) == {f"model.layers.{block}.mlp.experts.down_proj" for block in range(3)}
    theirs = peft.PeftModel.from_pretrained(base("mixtral"), tmp_path / "peft").eval()
    assert (logits(theirs) - wanted).abs().max() < 0.9 * (wanted - logits(base("mixtral"))).abs().max()


def test_transformers_own_loader_answers_the_same(tmp_path):
    wanted, _ = exported(CASES["experts"][1], "mixtral", tmp_path)
    theirs = base("mixtral")
    theirs.load_adapter(str(tmp_path / "peft"))
    assert (logits(theirs.eval()) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("older", [False, True])
def test_experts_stored_the_other_way_come_in(older, tmp_path):
    """GPT-OSS keeps [experts, in, out], which peft before 0.19.1 took everything for, so its folders are as today's."""
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=BOTH)
    model = peft.get_peft_model(base("gpt_oss"), config)
    for turn, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.data = 0.3 * parameter.new_tensor(range(turn, turn + parameter.numel())).sin().view_as(parameter)
    model.save_pretrained(tmp_path / "peft")
    file = tmp_path / "peft" / "adapter_config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | ({"peft_version": "0.18.1"} if older else {})))
    ours = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base("gpt_oss"))
    wanted = logits(model.eval())
    assert (wanted - logits(base("gpt_oss"))).abs().max() > 0.05
    assert (logits(lt.load(base("gpt_oss"), ours)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
