"""The calibration pass: streamed and padded, it is the sum over real tokens."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from architectures import ARCHITECTURES
from luthier.core.stats import collect


def test_the_moment_is_that_of_the_real_tokens_however_they_are_batched():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    sites = lt.select(model, "q_proj, down_proj")
    ids, lengths = torch.randint(3, 97, (3, 8)), [8, 5, 2]
    alone = [{"input_ids": ids[i : i + 1, :n]} for i, n in enumerate(lengths)]
    mask = torch.tensor([[1] * n + [0] * (8 - n) for n in lengths])
    one, many = (collect(model, b, sites, ["moment"]) for b in (alone, [{"input_ids": ids, "attention_mask": mask}]))
    seen = []
    model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda m, a: seen.append(a[0][0].detach()))
    for batch in alone:
        model(**batch)
    rows = torch.cat(seen)
    path = "model.layers.1.self_attn.q_proj"
    assert torch.allclose(one[path]["moment"], rows.T @ rows / len(rows))
    assert all(torch.allclose(one[p]["moment"], many[p]["moment"]) for p in one)
    assert one["model.layers.0.mlp.down_proj"]["moment"].shape == (48, 48)


def test_an_unknown_statistic_is_refused():
    model = ARCHITECTURES["llama"].build()
    with pytest.raises(lt.LuthierError, match="did you mean 'moment'"):
        collect(model, [], lt.select(model, "q_proj"), ["momnt"])
