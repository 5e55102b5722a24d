"""Mixtures of 4 to 6 bits: the types that llama.cpp gives each tensor, its own quantiser's bytes, and its answers."""

from __future__ import annotations

import sys

import pytest
import torch

import luthier as lt
from interop.test_gguf import ROWS, byte_level, prompt_of
from luthier.interop.formats._gguf.k_quants import stored_as
from support.shipped import build, logits, moved

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
SIZES = {
    "wide": {**WIDE, "num_hidden_layers": 2},
    "narrow": {"num_hidden_layers": 2},
    "deep": {**WIDE, "num_hidden_layers": 8},
}
LOSSES = {"q4_k_m": 0.1, "q5_k_m": 0.06, "q6_k": 0.03}


def shipped(size: str, dtype: str, folder):
    """(the adapted model, the file, what was lost)."""
    made = lambda: build("llama", vocab_size=ROWS, **SIZES[size])  # noqa: E731
    model = moved(lt.attach(made(), lt.LoRA(rank=2)), 0.02)
    lt.save(model, folder / "adapter")
    to = lt.formats.GGUF(dtype=dtype)
    lost = lt.export(folder / "adapter", folder / "out", to=to, base=made(), processor=byte_level())
    return model, folder / "out" / "model.gguf", lost


@pytest.mark.parametrize("dtype", LOSSES)
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_llamacpp_runs_a_mixture(size, dtype, tmp_path):
    """As transformers does with the same bits; llama.cpp rounds what enters a matrix to 8 bits as well."""
    from transformers import AutoModelForCausalLM

    from support.llamacpp import Engine

    model, file, lost = shipped(size, dtype, tmp_path)
    assert 0 < max(lost.values()) < LOSSES[dtype]
    ids = prompt_of(model)
    theirs = Engine(file).log_probabilities(ids, ROWS)
    same = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    read = logits(same, torch.tensor([ids]))[0, -1].log_softmax(-1)
    assert (theirs - read).abs().max() < 0.5 * read.std() and torch.corrcoef(torch.stack([theirs, read]))[0, 1] > 0.99


def test_bits_lie_where_llamacpp_puts_them(tmp_path):
    _, file, _ = shipped("deep", "q4_k_m", tmp_path)
    held = {each.name: each.tensor_type.name for each in gguf.GGUFReader(file).tensors}
    assert held["output.weight"] == "Q6_K" and held["token_embd.weight"] == "Q4_K"
    more = [block for block in range(8) if held[f"blk.{block}.ffn_down.weight"] == "Q6_K"]
    assert more == [block for block in range(8) if held[f"blk.{block}.attn_v.weight"] == "Q6_K"] == [0, 3, 6, 7]
    assert {held[f"blk.{block}.attn_q.weight"] for block in range(8)} == {"Q4_K"}
    assert {kind for name, kind in held.items() if "norm" in name} == {"F32"}


def test_rows_that_are_no_multiple_of_a_block_have_what_llamacpp_takes_instead():
    assert stored_as("q4_k_m", "blk.1.attn_q.weight", 64, 8, tied=False) == "Q5_0"
    assert stored_as("q4_k_m", "blk.0.attn_v.weight", 64, 8, tied=False) == "Q8_0"
    assert stored_as("q5_k_m", "blk.1.attn_q.weight", 64, 8, tied=False) == "Q5_1"
    assert stored_as("q4_k_m", "token_embd.weight", 256, 8, tied=True) == "Q6_K"
    assert stored_as("q4_k_m", "output.weight", 96, 8, tied=False) == "Q8_0"
    assert stored_as("q6_k", "blk.0.attn_v.weight", 100, 8, tied=False) == "F16"


def test_without_the_quantiser_it_says_what_to_install(tmp_path, monkeypatch):
    from luthier.interop.formats._gguf import k_quants

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    k_quants._quantiser.cache_clear()
    with pytest.raises(lt.LuthierError, match="pip install xllamacpp, or take q8_0"):
        shipped("narrow", "q4_k_m", tmp_path)
    k_quants._quantiser.cache_clear()
