"""peft's format: exact where peft has the method, whole modules beside it, names that do not collide, refusals."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import luthier as lt
from support import recorded
from support.architectures import ARCHITECTURES
from support.shipped import build, logits, moved

peft = pytest.importorskip("peft")

EXACT = {
    "dora": ("llama", lt.DoRA(rank=4), "all-linear"),
    "dora under a bias": ("qwen2", lt.DoRA(rank=4, scaling="rslora"), "q_proj, v_proj"),
    "dora on Conv1D": ("gpt2", lt.DoRA(rank=2), "all-linear"),
    "ia3": ("llama", lt.IA3(), "k_proj, v_proj"),
    "ia3 where the paper has it": ("llama", lt.IA3(), "k_proj, v_proj | input(down_proj)"),
    "ia3 under a bias": ("qwen2", lt.IA3(), "q_proj, v_proj"),
    "ia3 on Conv1D": ("gpt2", lt.IA3(), "c_attn | input(mlp.c_proj)"),
    "alora": ("llama", lt.LoRA(rank=2, positions="from:20.21"), "all-linear"),
}


def mamba():
    torch.manual_seed(0)
    settings = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
    return transformers.MambaForCausalLM(settings)


SMALL = {"mamba": mamba, "gpt_oss": lambda: recorded.base("gpt_oss")}


def exported(model, folder, base, **settings):
    lt.save(model, folder / "adapter")
    return lt.export(folder / "adapter", folder / "peft", to=lt.formats.PEFT(**settings), base=base)


def agree(first, second, tolerance: float = 1e-5) -> bool:
    return bool((first - second).abs().max() < tolerance * max(1.0, float(first.abs().max())))


@pytest.mark.parametrize("case", EXACT)
def test_methods_that_peft_has_are_exact(case, tmp_path):
    architecture, form, where = EXACT[case]
    model = moved(lt.attach(build(architecture), form, where=where))
    base = build(architecture)
    assert exported(model, tmp_path, base) == {}
    theirs = peft.PeftModel.from_pretrained(build(architecture), tmp_path / "peft")
    assert agree(logits(model), logits(theirs.eval()))
    assert not agree(logits(model), logits(base), 1e-2)


@pytest.mark.parametrize("case", ["dora", "dora under a bias", "ia3"])
def test_transformers_own_loader_answers_the_same(case, tmp_path):
    architecture, form, where = EXACT[case]
    model = moved(lt.attach(build(architecture), form, where=where))
    exported(model, tmp_path, build(architecture))
    theirs = build(architecture)
    theirs.load_adapter(str(tmp_path / "peft"))
    assert agree(logits(model), logits(theirs.eval()))


def test_with_a_rank_dora_leaves_as_a_plain_change(tmp_path):
    model = moved(lt.attach(build("llama"), lt.DoRA(rank=2), where="q_proj"))
    lost = exported(model, tmp_path, build("llama"), rank=32, tolerance=1e-4)
    assert len(lost) == 3
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert not config.get("use_dora") and config["r"] == 32
    theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "peft")
    assert agree(logits(model), logits(theirs.eval()), 1e-4)


def test_a_rank_is_the_largest_one_and_a_tolerance_goes_with_it(tmp_path):
    model = moved(lt.attach(build("llama"), lt.LoRA(rank=4), where="q_proj"))
    lt.save(model, tmp_path / "adapter")

    def out(name, **settings):
        return lt.export(tmp_path / "adapter", tmp_path / name, to=lt.formats.PEFT(**settings), base=build("llama"))

    with pytest.raises(lt.LuthierError, match=r"rank 2 loses .* more than the tolerance"):
        out("cut", rank=2)
    lost = out("cut", rank=2, tolerance=0.9)
    assert len(lost) == 3 and json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == 2
    assert out("whole", rank=9) == {}
    assert json.loads((tmp_path / "whole" / "adapter_config.json").read_text())["r"] == 4
    with pytest.raises(lt.LuthierError, match="no rank is given"):
        lt.formats.PEFT(tolerance=0.1)


def test_ranks_of_each_layer_hold_in_a_deep_model(tmp_path):
    """Layer 1 and layer 11 differ; a pattern that reached both would not load."""
    deep = {"num_hidden_layers": 12}
    ranks = {f"model.layers.{i}.self_attn.q_proj": 1 + i % 5 + 6 * (i == 11) for i in range(12)}
    model = moved(lt.attach(build("llama", **deep), lt.LoRA(rank=4), where="q_proj", ranks=ranks))
    assert exported(model, tmp_path, build("llama", **deep)) == {}
    theirs = peft.PeftModel.from_pretrained(build("llama", **deep), tmp_path / "peft").eval()
    for path, rank in ranks.items():
        assert theirs.get_submodule(f"base_model.model.{path}").lora_A["default"].weight.shape[0] == rank
    assert agree(logits(model), logits(theirs))


def test_a_name_that_ends_another_reaches_it_alone(tmp_path):
    """peft matches a list by the ends of names: `proj` would adapt `inner.proj` as well."""
    from luthier.interop.formats._peft_contents import targets

    inner = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4)})
    net = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4), "inner": inner})
    assert targets(net, ["proj"]) == "proj" and targets(net, ["inner.proj"]) == ["inner.proj"]
    made = peft.get_peft_model(net, peft.LoraConfig(target_modules=targets(net, ["proj"])))
    assert {name for name, m in made.named_modules() if "lora_A" in dict(m.named_children())} == {
        "base_model.model.proj"
    }


def test_a_new_head_travels(tmp_path):
    inputs = {"input_ids": torch.arange(3, 19)[None]}
    model = lt.attach(build("bert"), lt.LoRA(rank=2), where="query, value")
    moved(lt.attach(model, lt.Full(), where="params(classifier.*)"))
    base = build("bert", num_labels=2)
    assert exported(model, tmp_path, base) == {}
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert told["modules_to_save"] == ["classifier"] and told["task_type"] == "SEQ_CLS"
    theirs = peft.PeftModel.from_pretrained(build("bert"), tmp_path / "peft").eval()
    with torch.no_grad():
        assert agree(model(**inputs).logits, theirs(**inputs).logits)
        assert not agree(model(**inputs).logits, base(**inputs).logits, 1e-2)


TASKS = {
    "llama": "CAUSAL_LM",
    "t5": "SEQ_2_SEQ_LM",
    "whisper": None,
    "bert": None,
    "vit": None,
}
"""What peft's folder says, whose classes for a task take tokens alone, and a head that is saved whole."""


@pytest.mark.parametrize("name", TASKS)
def test_peft_runs_the_folder_as_the_task_that_it_says(name, tmp_path):
    model = moved(lt.attach(build(name), lt.LoRA(rank=2), where="all-linear"))
    exported(model, tmp_path, build(name))
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["task_type"] == TASKS[name]
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path / "peft").eval()
    inputs = ARCHITECTURES[name].inputs()
    with torch.no_grad():
        assert agree(model(**inputs).logits, theirs(**inputs).logits)


def test_trained_norms_and_biases_travel_in_their_modules(tmp_path):
    model = lt.attach(build("qwen2"), lt.LoRA(rank=2), where="q_proj")
    lt.attach(model, lt.BitFit(), where="params(k_proj.bias)")
    moved(lt.attach(model, lt.Full(), where="params(model.norm.weight, post_attention_layernorm.weight)"))
    base = build("qwen2")
    assert exported(model, tmp_path, base) == {}
    theirs = peft.PeftModel.from_pretrained(build("qwen2"), tmp_path / "peft").eval()
    assert agree(logits(model), logits(theirs)) and not agree(logits(model), logits(base), 1e-2)


ALONE = {
    "norms": ("llama", lt.Full(), "params(*norm.weight)"),
    "biases": ("qwen2", lt.BitFit(), "params(*.bias)"),
    "a linear layer": ("llama", lt.Full(), "params(q_proj.weight)"),
    "a head": ("llama", lt.Full(), "params(lm_head.weight)"),
    "Conv1D": ("gpt2", lt.Full(), "params(*.mlp.c_proj.weight)"),
}


@pytest.mark.parametrize("case", ALONE)
def test_parameters_trained_alone_leave_as_pefts_whole_modules(case, tmp_path):
    """LN_TUNING, for modules that are called with their input."""
    architecture, form, where = ALONE[case]
    model = moved(lt.attach(build(architecture), form, where=where))
    base = build(architecture)
    assert exported(model, tmp_path, base) == {}
    theirs = peft.PeftModel.from_pretrained(build(architecture), tmp_path / "peft").eval()
    assert agree(logits(model), logits(theirs)) and not agree(logits(model), logits(base), 1e-2)
    back = lt.import_adapter(tmp_path / "peft", tmp_path / "back", base=base)
    assert agree(logits(lt.load(build(architecture), back)), logits(model))


NOT_ALONE = {
    "read by a parent": ("mamba", "params(*.conv1d.weight)"),
    "a linear layer that a parent reads": ("mamba", "params(*.dt_proj.weight)"),
    "called by keywords": ("gpt_oss", "params(*.sinks)"),
}


@pytest.mark.parametrize("case", NOT_ALONE)
def test_parameters_that_pefts_copy_would_not_serve_are_refused(case, tmp_path):
    name, where = NOT_ALONE[case]
    model = lt.attach(SMALL[name](), lt.Full(), where=where)
    with pytest.raises(lt.LuthierError, match="wants a method beside them"):
        exported(moved(model), tmp_path, SMALL[name]())
    assert not (tmp_path / "peft").exists()


REFUSED = {
    "an edit of the stream": ("llama", [(lt.LoReFT(rank=2), "stream")], "not a weight.*luthier generate"),
    "positions": ("llama", [(lt.LoReFT(rank=2), "q_proj")], "positions f7\\+l7"),
    "two invocations": ("llama", [(lt.LoRA(rank=2, positions="from:5,from:6"), "q_proj")], "positions from:5"),
    "a prefix of one block": ("llama", [(lt.Prefix(), "attention & layers(1)")], "before 1 of 3 attentions"),
    "a prefix beside factors": ("llama", [(lt.Prefix(), "attention"), (lt.LoRA(rank=2), "q_proj")], "not a weight"),
    "a prefix before added positions": ("gpt2", [(lt.Prefix(), "attention")], "positions that are not rotary"),
    "ia3 on a table": ("llama", [(lt.IA3(), "embeddings")], "no low-rank form"),
    "dora on experts": ("mixtral", [(lt.DoRA(rank=2), "experts")], "not of low rank.*--rank"),
    "a bias beside factors": (
        "qwen2",
        [(lt.LoRA(rank=2), "q_proj, v_proj"), (lt.BitFit(), "params(q_proj.bias)")],
        "as well",
    ),
    "two forms on one layer": ("llama", [(lt.LoRA(rank=2), "q_proj"), (lt.IA3(), "input(q_proj)")], "not a weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_is_refused_with_a_way_out(case, tmp_path):
    architecture, pieces, message = REFUSED[case]
    model = build(architecture)
    for form, where in pieces:
        lt.attach(model, form, where=where)
    base = build(architecture)
    with pytest.raises(lt.LuthierError, match=message):
        exported(moved(model), tmp_path, base)
    assert not (tmp_path / "peft").exists()
    assert not [p for p in tmp_path.iterdir() if p.name != "adapter"]
    assert type(base).forward is type(build(architecture)).forward  # nothing is left on it


def test_a_base_that_carries_adapters_keeps_them_as_they_were(tmp_path):
    base = moved(lt.attach(build("llama"), lt.LoRA(rank=2), where="v_proj", name="mine"))
    lt.attach(base, lt.LoRA(rank=2), where="k_proj", name="off")
    lt.disable(base, "off")
    before = logits(base)
    model = moved(lt.attach(build("llama"), lt.LoRA(rank=2), where="q_proj"))
    exported(model, tmp_path, base)
    assert torch.equal(logits(base), before)
    theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "peft").eval()
    assert agree(logits(model), logits(theirs))


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "precious").write_text("x")
    model = lt.attach(build("llama"), lt.LoRA(rank=2), where="q_proj")
    with pytest.raises(lt.LuthierError, match="not empty"):
        exported(model, tmp_path, build("llama"))
    assert (tmp_path / "peft" / "precious").exists()


def test_settings_out_of_range_are_refused():
    with pytest.raises(lt.LuthierError, match="at least 1"):
        lt.formats.PEFT(rank=0)
    with pytest.raises(lt.LuthierError, match="from 0 to 1"):
        lt.formats.PEFT(rank=2, tolerance=3.0)
