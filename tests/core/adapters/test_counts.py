"""Parameter counts of the papers' tables, on the meta device, through the public names."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import luthier as lt

LLAMA2_7B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)
LLAMA3_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
QV = "q_proj, v_proj"
QKVUD = "q_proj, k_proj, v_proj, up_proj, down_proj"


def count(config, form, where) -> tuple[int, float]:
    """(trained parameters, their share of the base in per cent)."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    trained = lt.trainable(lt.attach(model, form, where=where), count=True)
    return trained, 100 * trained / total


@pytest.mark.parametrize(
    ("config", "where", "expected"),
    [(LLAMA2_7B, QV, 1_048_576), (LLAMA2_7B, QKVUD, 3_506_176)],
)
def test_wegeft_shared_by_type_on_llama_2(config, where, expected):
    assert count(config, lt.WeGeFT(rank=64, alpha=128, share="type"), where)[0] == expected


@pytest.mark.parametrize(("where", "share"), [(QV, "0.0131"), (QKVUD, "0.0490")])
def test_wegeft_shared_by_type_on_llama_3(where, share):
    assert f"{count(LLAMA3_8B, lt.WeGeFT(rank=64, alpha=128, share='type'), where)[1]:.4f}" == share


def test_one_pair_over_all_types_needs_equal_widths():
    form = lt.WeGeFT(rank=64, share="all")
    assert count(LLAMA2_7B, form, "q_proj, k_proj, v_proj, up_proj")[0] == 2 * 64 * 4096
    with pytest.raises(lt.LuthierError, match="cannot share"):
        count(LLAMA2_7B, form, QKVUD)


def test_loreft_on_every_layer_of_llama_2_is_its_published_share():
    trained, share = count(LLAMA2_7B, lt.LoReFT(rank=8, positions="f7+l7"), "stream")
    assert trained == 32 * (2 * 8 * 4096 + 8) and f"{share:.3f}" == "0.031"


def test_untied_positions_have_parameters_of_their_own():
    tied, untied = (count(LLAMA2_7B, lt.LoReFT(rank=4, positions=p), "stream")[0] for p in ("f5+l5", "f5,l5"))
    assert untied == 2 * tied


def test_lora_counts():
    assert count(LLAMA2_7B, lt.LoRA(rank=8), QV)[0] == 32 * 2 * 2 * 8 * 4096
