"""What is written for engines that serve adapters answers as the adapter does, and their refusals are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import luthier as lt
from luthier.core.contracts.component import find
from support.recorded import base, logits
from support.shipped import moved

peft = pytest.importorskip("peft")
LORA = lt.LoRA(rank=2)


def saved(name: str, pieces, folder: Path, ranks=None):
    """What our adapter answers, that is saved in `folder`/adapter."""
    model = base(name)
    for form, where in pieces:
        lt.attach(model, form, where=where, **({"ranks": ranks} if ranks else {}))
    lt.save(moved(model.eval(), 0.3), folder / "adapter")
    return logits(model)


def exported(name: str, engine: str, folder: Path, **more) -> dict:
    """The configuration of what was written for an engine."""
    lt.export(folder / "adapter", folder / engine, to=lt.formats.PEFT(engine=engine, **more), base=base(name))
    return json.loads((folder / engine / "adapter_config.json").read_text())


def layers(folder: Path) -> set[str]:
    keys = load_file(folder / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in keys}


UNEVEN = {f"model.layers.{i}.self_attn.q_proj": 1 + i for i in range(3)}
LAYOUTS = {
    ("sglang", "q_proj", None): {f"model.layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qkv"},
    ("sglang", "up_proj & layers(1)", None): {f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up")},
    ("tgi", "o_proj & layers(1)", None): {f"model.layers.{i}.self_attn.o_proj" for i in range(3)},
    ("tgi", "q_proj", "uneven"): set(UNEVEN),
    ("sglang", "embed_tokens, lm_head", None): {"model.embed_tokens", "lm_head"},
    ("vllm", "q_proj, down_proj", None): {
        f"model.layers.{i}.{n}_proj" for i in range(3) for n in ("self_attn.q", "mlp.down")
    },
}


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: " ".join(filter(None, case)))
def test_layers_that_an_engine_wants_are_there_and_change_nothing(case, tmp_path):
    engine, where, uneven = case
    wanted = saved("llama", [(LORA, where)], tmp_path, UNEVEN if uneven else None)
    told = exported("llama", engine, tmp_path)
    assert layers(tmp_path / engine) == LAYOUTS[case] and isinstance(told["target_modules"], list)
    assert told["r"] == told["lora_alpha"] == (3 if uneven else 2)
    assert not told["rank_pattern"] and not told["alpha_pattern"]
    theirs = peft.PeftModel.from_pretrained(base("llama"), tmp_path / engine).eval()
    assert (logits(theirs) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    back = lt.import_adapter(tmp_path / engine, tmp_path / "back", base=base("llama"))
    assert (logits(lt.load(base("llama"), back)) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


HEAD = [(LORA, "query"), (lt.Full(), "params(classifier.*)")]
REFUSED = {
    ("vllm", "gpt2"): ("gpt2", [(LORA, "c_attn")], "vLLM would not .* own code of GPT2LMHeadModel takes no LoRA"),
    ("vllm", "a part of a pipeline"): ("clip", [(LORA, "q_proj")], "vLLM would not .* runs no CLIPTextModel"),
    ("tgi", "a part of a pipeline"): ("clip", [(LORA, "q_proj")], "would not .* runs no CLIPTextModel"),
    ("sglang", "gpt2"): ("gpt2", [(LORA, "c_attn")], r"SGLang would not .* this changes transformer.h.\d.attn.c_attn"),
    ("vllm", "dora"): ("llama", [(lt.DoRA(rank=2), "q_proj")], "vLLM would not .* this is DoRA. .*--rank"),
    ("sglang", "ia3"): ("llama", [(lt.IA3(), "k_proj")], "SGLang would not .* this is IA3"),
    ("vllm", "norms"): ("llama", [(lt.Full(), "params(model.norm.weight)")], "this is LN_TUNING. Export it merged"),
    ("transformers", "alora"): ("llama", [(lt.LoRA(positions="from:5"), "q_proj")], "looks for no invocation"),
    ("vllm", "alora"): ("llama", [(lt.LoRA(positions="from:5"), "q_proj")], "this is aLoRA. No other layout"),
    ("transformers", "a prefix"): ("llama", [(lt.Prefix(length=2), "attention")], "takes no prefixes"),
    ("sglang", "a head"): ("roberta", HEAD, "passes over modules_to_save"),
    ("tgi", "a head"): ("roberta", HEAD, "passes over modules_to_save"),
    ("vllm", "one of two"): ("mixtral", [(LORA, "params(mlp.experts.down_proj)")], "both parameters of experts"),
    ("sglang", "experts"): ("mixtral", [(LORA, "experts")], "does not read target_parameters"),
    ("tgi", "a table"): ("llama", [(LORA, "embed_tokens")], "this changes model.embed_tokens"),
    ("tgi", "a fused layer"): ("phi3", [(LORA, "qkv_proj")], "adapts q_proj, .* alone"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: " ".join(filter(None, case)))
def test_what_an_engine_would_not_run_is_refused(case, tmp_path):
    name, pieces, message = REFUSED[case]
    saved(name, pieces, tmp_path)
    with pytest.raises(lt.LuthierError, match=message):
        exported(name, case[0], tmp_path)
    assert not (tmp_path / case[0]).exists()


def test_with_a_rank_dora_leaves_for_an_engine(tmp_path):
    wanted = saved("llama", [(lt.DoRA(rank=2), "q_proj")], tmp_path)
    assert exported("llama", "sglang", tmp_path, rank=16, tolerance=1e-3)["r"] == 16
    theirs = peft.PeftModel.from_pretrained(base("llama"), tmp_path / "sglang").eval()
    assert (logits(theirs) - wanted).abs().max() < 1e-3


def test_a_head_that_vllm_takes_and_experts_are_written_as_for_peft(tmp_path):
    ranks = [(lt.LoRA(rank=3), "params(*down_proj)"), (LORA, "params(*gate_up_proj)")]
    for name, pieces in (("bert", HEAD), ("mixtral", ranks)):
        saved(name, pieces, tmp_path / name)
        exported(name, "vllm", tmp_path / name), exported(name, "any", tmp_path / name)
        files = [(tmp_path / name / each / "adapter_model.safetensors").read_bytes() for each in ("vllm", "any")]
        assert files[0] == files[1]


TAKES = "It loads in peft, vLLM (--max-lora-rank 8), SGLang, text-generation-inference, transformers' load_adapter."
REMARKS = {
    "all of a kind": ("llama", [(LORA, "q_proj, k_proj, v_proj")], [TAKES]),
    "some of a kind": (
        *("llama", [(LORA, "q_proj")]),
        [
            TAKES.replace(" SGLang,", ""),
            "SGLang takes one rank, and all layers of a kind; write it with --engine sglang.",
        ],
    ),
    "a prefix": (
        "llama",
        [(lt.Prefix(length=2), "attention")],
        [
            "It loads in peft.",
            "vLLM does not: it takes LoRA, and this is PREFIX_TUNING. No other layout helps; `luthier serve` runs it.",
        ],
    ),
}


@pytest.mark.parametrize("case", REMARKS)
def test_who_takes_a_folder_is_told(case, tmp_path):
    name, pieces, told = REMARKS[case]
    saved(name, pieces, tmp_path)
    exported(name, "any", tmp_path)
    found = find("formats", "peft")().remarks(tmp_path / "any", base(name))
    assert found[: len(told)] == told and (len(found) == len(told) or "does not: " in found[len(told)])


def test_transformers_own_loader_takes_what_is_said(tmp_path):
    for name, pieces in (("roberta", HEAD), ("llama", [(lt.Full(), "params(model.norm.weight)")])):
        wanted = saved(name, pieces, tmp_path / name)
        exported(name, "transformers", tmp_path / name)
        theirs = base(name)
        theirs.load_adapter(str(tmp_path / name / "transformers"))
        assert (logits(theirs.eval()) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())), name
