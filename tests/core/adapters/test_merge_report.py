"""Merging says what rounding changed, and puts everything back."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from support.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["llama"]


def fitted(dtype: torch.dtype):
    model = lt.attach(LLAMA.build(dtype=dtype), lt.LoRA(rank=4, dropout=0.3), where="q_proj, down_proj")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 0.0, 1e-5), (torch.bfloat16, 1e-4, 0.2)])
def test_the_largest_change_is_that_of_the_outputs(dtype, least, most):
    model, inputs = fitted(dtype).eval(), LLAMA.inputs()
    with torch.no_grad():
        before = model(**inputs).logits.float()
        lt.merge(model, inputs=inputs)
        after = model(**inputs).logits.float()
    change, largest = lt.rounding(model)
    assert change == float((after - before).abs().max()) and least <= change < most
    assert largest == float(before.abs().max())
    assert {p.dtype for n, p in model.named_parameters() if ".adapters." not in n} == {dtype}


def test_it_is_known_without_inputs_and_gone_when_unmerged():
    model = fitted(torch.float32).train()
    lt.merge(model)
    found = lt.rounding(model)
    assert found is not None and found[0] < 1e-5 * found[1] and model.training
    lt.unmerge(model)
    with pytest.raises(lt.LuthierError, match="nothing is merged"):
        lt.rounding(model)


def test_a_model_that_nothing_is_known_to_run_merges_all_the_same():
    blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    model = lt.attach(torch.nn.Sequential(blocks[0], blocks[1]), lt.LoRA(rank=2), where="0")
    assert lt.rounding(lt.merge(model)) is None
