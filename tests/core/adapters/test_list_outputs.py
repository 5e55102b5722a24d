"""Blocks that return a list, whose first is the tensor, are edited as those that return a tuple."""

from __future__ import annotations

import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

import luthier as lt


def test_a_stream_that_leaves_its_block_in_a_list_is_edited():
    torch.manual_seed(0)
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    lt.attach(model, lt.LoReFT(rank=2), where="stream")
    assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-6)
    with torch.no_grad():
        for parameter in lt.trainable(model).values():
            parameter.add_(0.1)
    assert not torch.allclose(model(input_ids=ids).logits, before, atol=1e-3)
    lt.detach(model)
    assert torch.equal(model(input_ids=ids).logits, before)
