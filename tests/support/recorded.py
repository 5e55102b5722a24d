"""Folders that other libraries wrote, kept as small data: their bases, the inputs, and what the library answered.

`tests/interop/<format>_folders` holds a folder for each case, `cases.json` with the base of each (and the settings to
read it with), and `logits.safetensors` with what the library's own model answered to `IDS`. Each was written by
tests/support/record_<library>.py in an environment of the library's own, from bases that this writes first:

    python -m support.recorded BASES                              # in our environment, from tests/
    python record_mlx.py BASES tests/interop/mlx_lm_folders       # in the library's

Parameters follow from their names by a formula, so that a base needs no file and is the same under any torch.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from support.pyreft_recorded import IDS, values

FOLDERS = Path(__file__).parents[1] / "interop"
SIZE = {
    **{"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "max_position_embeddings": 64},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
HALF = {"num_key_value_heads": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
DEEPSEEK = {
    **{"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "num_key_value_heads": 2},
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
}
GPT2 = {"n_positions": 64, "n_ctx": 64, "vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2}
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZE, **HALF}),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {**SIZE, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**SIZE, **HALF, "head_dim": 8, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**SIZE, **HALF}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SIZE, **HALF, "head_dim": 8}),
    "gemma3": (
        *("Gemma3ForCausalLM", "Gemma3TextConfig"),
        {**SIZE, **HALF, "num_hidden_layers": 6, "head_dim": 8, "query_pre_attn_scalar": 8},
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**SIZE, **HALF}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SIZE, **HALF, **EXPERTS, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**SIZE, **HALF, "num_local_experts": 4}),
    "olmoe": (
        *("OlmoeForCausalLM", "OlmoeConfig"),
        {**SIZE, "intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    ),
    "qwen2_moe": (
        *("Qwen2MoeForCausalLM", "Qwen2MoeConfig"),
        {**SIZE, **HALF, **EXPERTS, "shared_expert_intermediate_size": 8},
    ),
    "gpt_oss": (
        *("GptOssForCausalLM", "GptOssConfig"),
        {**SIZE, **HALF, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**SIZE, **DEEPSEEK}),
    "roberta": (
        *("RobertaForSequenceClassification", "RobertaConfig"),
        {**SIZE, "type_vocab_size": 1, "num_labels": 2},
    ),
    "clip": ("CLIPTextModel", "CLIPTextConfig", {**SIZE, "num_hidden_layers": 2}),
    "clip_projected": (
        *("CLIPTextModelWithProjection", "CLIPTextConfig"),
        {**SIZE, "num_hidden_layers": 2, "projection_dim": 16},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", {**SIZE, "num_labels": 3}),
}
"""{name: (class, class of its configuration, settings)}."""


def base(name: str) -> Any:
    """A model whose parameters follow from their names, in evaluation mode."""
    cls, config, settings = BASES[name]
    model: Any = getattr(transformers, cls)(getattr(transformers, config)(**settings))
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        spread = 0.3 * values(parameter.numel(), turn).view_as(parameter)
        parameter.data.copy_(spread if parameter.dim() > 1 else 1 + spread)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A recorded folder."""

    format: str
    name: str
    base: str
    settings: dict[str, Any] = field(default_factory=dict)
    """To read it with."""

    @property
    def folder(self) -> Path:
        return FOLDERS / f"{self.format}_folders" / self.name

    @property
    def logits(self) -> torch.Tensor:
        """What the library's own model answered, adapter on."""
        return answers(self.format)[self.name]


@functools.cache
def answers(form: str) -> dict[str, torch.Tensor]:
    """{case: logits} of a format, those of the bases among them."""
    return load_file(FOLDERS / f"{form}_folders" / "logits.safetensors")


def cases() -> list[Case]:
    """Every recorded folder."""
    found = []
    for file in sorted(FOLDERS.glob("*_folders/cases.json")):
        form = file.parent.name.removesuffix("_folders")
        told = json.loads(file.read_text())
        found += [Case(form, name, each["base"], each.get("settings", {})) for name, each in told["cases"].items()]
    return found


def logits(model: Any) -> torch.Tensor:
    """The answer to `IDS`: logits, or the states of an encoder that has no head."""
    with torch.no_grad():
        return model(input_ids=IDS)[0]


if __name__ == "__main__":
    for each in BASES:
        base(each).save_pretrained(Path(sys.argv[1]) / each)
