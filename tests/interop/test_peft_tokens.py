"""Trained rows of tables: they come in as peft runs them, and leave as low-rank changes, which engines take too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import luthier as lt
from interop.test_peft_prefixes import made
from support.recorded import HALF, SIZE, base, logits

peft = pytest.importorskip("peft")
TOKENS = [5, 9]


def saved(model: Any, where: Any, folder) -> torch.Tensor:
    """What peft answers with rows of tables that it trained and saved in `folder`."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=where)
    theirs = peft.get_peft_model(model, config)
    for name, parameter in theirs.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5
    theirs.save_pretrained(folder)
    return logits(theirs.eval())


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max())))


def phi() -> Any:
    return made("PhiForCausalLM", "PhiConfig", {**SIZE, **HALF})


def test_a_head_with_a_bias_comes_in_as_it_was_trained(tmp_path):
    """peft runs it without, and has it again once it is merged (findings/peft_trainable_tokens_head_bias.sh)."""
    wanted = saved(phi(), {"lm_head": TOKENS}, tmp_path / "peft")
    with pytest.warns(UserWarning, match=r"whose bias \(lm_head.bias\) peft 0.21 leaves out"):
        ours = lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=phi())
    assert not near(wanted, logits(phi())) and near(logits(lt.load(phi(), ours)), wanted)


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
@pytest.mark.parametrize("engine", ["any", "vllm"])
def test_rows_leave_as_low_rank_changes(name, engine, tmp_path):
    wanted = saved(base(name), TOKENS, tmp_path / "peft")
    lt.convert(tmp_path / "peft", tmp_path / "out", to=lt.formats.PEFT(engine=engine), base=base(name))
    theirs = peft.PeftModel.from_pretrained(base(name), tmp_path / "out").eval()
    assert not near(wanted, logits(base(name))) and near(logits(theirs), wanted)


@pytest.mark.parametrize("settings", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}])
def test_a_base_with_fewer_tokens_is_told_how_many_to_have(settings, tmp_path):
    grown = base("llama")
    grown.resize_token_embeddings(40, mean_resizing=False)
    peft.get_peft_model(grown, peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings})).save_pretrained(
        tmp_path / "peft"
    )
    with pytest.raises(lt.LuthierError, match=r"of 40 tokens: resize this one .*resize_token_embeddings\(40\)"):
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=base("llama"))
    small = base("llama")
    small.resize_token_embeddings(40, mean_resizing=False)
    assert lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=small)
