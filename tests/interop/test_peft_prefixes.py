"""Prefixes come in from peft and leave to it with the same answers, whatever rotates the positions of a base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import luthier as lt
from luthier.core.sites.select import select
from luthier.interop.formats._peft_prefix import rotation
from support import recorded
from support.pyreft_recorded import IDS, values
from support.recorded import HALF, SIZE, logits

peft = pytest.importorskip("peft")
COUNT = 3


def scaled(kind: str, **more: Any) -> dict[str, Any]:
    told = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **more}
    return {**SIZE, **HALF, "rope_parameters": told, "max_position_embeddings": 64}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {**SIZE, **HALF}),
    "heads of their own width": ("Mistral", {**SIZE, **HALF, "head_dim": 8, "sliding_window": None}),
    "biases": ("Qwen2", {**SIZE, **HALF}),
    "llama3": ("Llama", scaled("llama3", **LLAMA3)),
    "yarn": ("Llama", scaled("yarn", original_max_position_embeddings=16)),
    "linear": ("Llama", scaled("linear")),
    "half of each head": ("Phi", {**SIZE, **HALF, "partial_rotary_factor": 0.5}),
    "neighbours": ("Cohere", {**SIZE, **HALF}),
    "half, neighbours": ("Glm", {**SIZE, **HALF, "head_dim": 8}),
    "none in some layers": ("SmolLM3", {**SIZE, **HALF, "no_rope_layers": [1, 0, 1]}),
    "none in layers that see all": ("Cohere2", {**SIZE, **HALF, "sliding_window": 32, "sliding_window_pattern": 2}),
    "other angles in other layers": ("Gemma3", {**recorded.BASES["gemma3"][2], "sliding_window": 32}),
    "each angle once": ("GptOss", {**recorded.BASES["gpt_oss"][2], "head_dim": 4, "sliding_window": 32}),
}
NOT_ROTARY, BY_LENGTH = "has positions that are not rotary", "no rotary positions of one kind"
REFUSED = {
    "added": (
        *("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 32}, NOT_ROTARY),
    ),
    "by length": (*("LlamaForCausalLM", "LlamaConfig"), scaled("dynamic"), BY_LENGTH),
}
HALF_STATES = {
    **{"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "mamba_d_state": 8, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8},
    **{"mamba_n_groups": 1, "mamba_chunk_size": 8, "pad_token_id": 0},
}
APART = {
    "what keys are made from": (
        "DeepseekV3",
        recorded.BASES["deepseek_v3"][2],
        "not all of this base's 3 layers .* keep the keys",
    ),
    "states beside keys": ("FalconH1", HALF_STATES, "not all of this base's 2 layers .* no other state"),
}


def made(cls: str, config: str, settings: dict[str, Any]) -> Any:
    model: Any = getattr(transformers, cls)(getattr(transformers, config)(**settings))
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.data.copy_(0.3 * values(parameter.numel(), turn).view_as(parameter) + (parameter.dim() == 1))
    return model.eval()


def base(case: str) -> Any:
    return of(*BASES[case])


def of(name: str, settings: dict[str, Any]) -> Any:
    text = f"{name}TextConfig"
    return made(f"{name}ForCausalLM", text if text in dir(transformers) else f"{name}Config", settings)


def saved(model: Any, folder) -> torch.Tensor:
    """What peft answers with prefixes that it saved in `folder`."""
    theirs = peft.get_peft_model(model, peft.PrefixTuningConfig(num_virtual_tokens=COUNT, task_type="CAUSAL_LM"))
    held = theirs.prompt_encoder.default.embedding.weight
    held.data = 0.5 * values(held.numel(), 7).view_as(held)
    theirs.save_pretrained(folder)
    return logits(theirs.eval())


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("case", BASES)
def test_there_and_back(case, tmp_path):
    before = logits(base(case))
    if BASES[case][1].get("head_dim") in (None, SIZE["hidden_size"] // SIZE["num_attention_heads"]):
        wanted = saved(base(case), tmp_path / "theirs")
        with pytest.warns(UserWarning, match="turned back"):
            ours = lt.import_adapter(tmp_path / "theirs", tmp_path / "ours", base=base(case))
        assert not near(wanted, before) and near(logits(lt.load(base(case), ours)), wanted)
    model = lt.attach(base(case), lt.Prefix(length=COUNT))
    for turn, parameter in enumerate(lt.trainable(model).values()):
        parameter.data = 0.5 * values(parameter.numel(), 30 + turn).view_as(parameter)
    lt.save(model, tmp_path / "adapter")
    assert lt.export(tmp_path / "adapter", tmp_path / "out", to="peft", base=base(case)) == {}
    theirs = peft.PeftModel.from_pretrained(base(case), tmp_path / "out").eval()
    assert not near(logits(model.eval()), before) and near(logits(theirs), logits(model))


@pytest.mark.parametrize("case", REFUSED)
def test_other_positions_are_refused_both_ways(case, tmp_path):
    *given, why = REFUSED[case]
    saved(made(*given), tmp_path / "theirs")
    with pytest.raises(lt.LuthierError, match=why):
        lt.import_adapter(tmp_path / "theirs", tmp_path / "ours", base=made(*given))
    lt.save(lt.attach(made(*given), lt.Prefix(length=COUNT)), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match=why):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="peft", base=made(*given))


@pytest.mark.parametrize("case", APART)
def test_layers_that_keep_other_states_are_refused_both_ways(case):
    name, settings, why = APART[case]
    model = of(name, {**settings, "pad_token_id": 0})
    sites = list(select(model, "attention"))
    for count, way in ((COUNT, "luthier generate"), (-COUNT, "Run it with peft")):
        with pytest.raises(lt.LuthierError, match=f"{why}.*{way}"):
            rotation(model, sites, count, "prefixes")


def test_an_attention_of_its_own_is_refused_with_advice(tmp_path):
    falcon = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32, "pad_token_id": 0}
    model = of("Falcon", falcon | {"multi_query": False})
    saved(model, tmp_path / "theirs")
    with pytest.raises(lt.LuthierError, match=r"interface.* Run it with peft"):
        lt.import_adapter(tmp_path / "theirs", tmp_path / "ours", base=of("Falcon", falcon | {"multi_query": False}))


def test_what_leaves_a_window_of_the_text_is_told_or_refused(tmp_path):
    """peft's prefix has places in the text, so that layers with a window see it for so long; ours is seen by all."""
    base = lambda seen: of("Mistral", {**SIZE, **HALF, "head_dim": 8, "sliding_window": seen})  # noqa: E731
    seen = IDS.shape[1] + COUNT
    wanted = saved(base(seen), tmp_path / "theirs")
    with pytest.warns(UserWarning, match=f"up to {seen - COUNT} tokens: layers of this base see {seen}"):
        ours = lt.import_adapter(tmp_path / "theirs", tmp_path / "ours", base=base(seen))
    assert near(logits(lt.load(base(seen), ours)), wanted)
    with pytest.warns(UserWarning, match=f"up to {seen - COUNT} tokens"):
        lt.export(ours, tmp_path / "out", to="peft", base=base(seen))
    with pytest.raises(lt.LuthierError, match=f"layers that see {COUNT} tokens"):
        lt.import_adapter(tmp_path / "theirs", tmp_path / "short", base=base(COUNT))
