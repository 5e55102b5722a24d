"""The calibration pass: streamed and padded, it is what the plain computation gives on real tokens."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.sites.collect import collect
from luthier.methods.statistics.gradient import Gradient
from luthier.methods.statistics.moment import Moment
from luthier.methods.statistics.states import POOLS, States
from support.architectures import ARCHITECTURES

IDS, LENGTHS = torch.randint(3, 97, (3, 8), generator=torch.Generator().manual_seed(0)), [8, 5, 2]
MASK = torch.tensor([[1] * n + [0] * (8 - n) for n in LENGTHS])
ALONE = [{"input_ids": IDS[i : i + 1, :n]} for i, n in enumerate(LENGTHS)]
PADDED = [{"input_ids": IDS, "attention_mask": MASK}]


def build():
    return ARCHITECTURES["llama"].build(dtype=torch.float64)


def reads(model, path: str, batches=ALONE) -> torch.Tensor:
    """What enters the module at `path`, token by token."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda m, a: seen.append(a[0][0].detach()))
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat(seen)


def test_the_moment_is_that_of_the_real_tokens_however_they_are_batched():
    model = build()
    sites = lt.select(model, "q_proj, down_proj")
    one, many = (collect(model, batches, sites, [Moment()]) for batches in (ALONE, PADDED))
    path = "model.layers.1.self_attn.q_proj"
    rows = reads(model, path)
    assert torch.allclose(one[path]["moment"], rows.T @ rows / len(rows))
    assert all(torch.allclose(one[p]["moment"], many[p]["moment"]) for p in one)
    assert one["model.layers.0.mlp.down_proj"]["moment"].shape == (48, 48)


def test_answers_alone_leave_the_prompt_out():
    model = build()
    labels = torch.where(torch.arange(8) < 3, -100, IDS)
    batch = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}]
    path = "model.layers.0.mlp.down_proj"
    found = collect(model, batch, lt.select(model, "down_proj"), [Moment()], answers=True)[path]["moment"]
    rows = torch.cat([reads(model, path, [{"input_ids": row[None]}])[3:] for row in IDS])
    assert torch.allclose(found, rows.T @ rows / len(rows))
    with pytest.raises(lt.LuthierError, match="no prompt and answer"):
        collect(model, PADDED, lt.select(model, "down_proj"), [Moment()], answers=True)


def test_an_input_that_several_sites_read_is_measured_once():
    model, seen = build(), []

    class Counting(Moment):
        def update(self, held, x, mask):
            seen.append(x.shape)
            return super().update(held, x, mask)

    found = collect(model, PADDED, lt.select(model, "all-linear"), [Counting()])
    layers = len(model.model.layers)
    assert len(seen) == 4 * layers  # q k v; o; gate up; down
    q, v, o = (found[f"model.layers.0.self_attn.{n}_proj"]["moment"] for n in "qvo")
    assert q is v and q is not o


@pytest.mark.parametrize("pool", POOLS)
def test_states_are_one_point_a_row_at_every_boundary(pool):
    model = build()
    found = collect(model, PADDED, lt.select(model, "q_proj"), [States(pool)])
    layers = len(model.model.layers)
    assert list(found) == [f"model.layers.{i}" for i in range(layers + 1)]
    states = model(**PADDED[0], output_hidden_states=True).hidden_states
    for i, n in enumerate(LENGTHS):
        row = states[1][i, :n]
        expected = {"mean": row.mean(0), "last": row[-1], "first": row[0], "middle": row[n // 2]}[pool]
        assert torch.allclose(found["model.layers.1"]["states"][i].double(), expected, atol=1e-6)
    alone = collect(model, ALONE, lt.select(model, "q_proj"), [States(pool)])
    assert all(torch.allclose(alone[p]["states"], found[p]["states"], atol=1e-6) for p in found)


def test_the_last_boundary_is_what_leaves_the_stack():
    model = build()
    found = collect(model, ALONE, lt.select(model, "q_proj"), [States("last")])
    last = f"model.layers.{len(model.model.layers)}"
    normed = model.model.norm(found[last]["states"].double())
    assert torch.allclose(normed[0], model(**ALONE[0], output_hidden_states=True).hidden_states[-1][0, -1], atol=1e-6)


def test_gradients_are_those_of_plain_backpropagation_and_nothing_is_left_behind():
    model = build()
    lt.attach(model, lt.LoRA(rank=2), where="q_proj")
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    batches = [{"input_ids": IDS[i : i + 1], "labels": IDS[i : i + 1]} for i in range(3)]
    sites = lt.select(model, "k_proj, down_proj")
    found = collect(model, batches, sites, [Gradient()])
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    weight = model.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
    sum(model(**batch).loss for batch in batches).div(3).backward()
    assert torch.allclose(found["model.layers.1.mlp.down_proj"]["gradient"].double(), weight.grad, atol=1e-6)
    with pytest.raises(lt.LuthierError, match="no labels"):
        collect(model, ALONE, sites, [Gradient()])


def test_a_gradient_lies_as_the_site_says():
    model = ARCHITECTURES["gpt2"].build()
    batch = [{"input_ids": IDS, "labels": IDS}]
    sites = lt.select(model, "c_fc")
    found = collect(model, batch, sites, [Gradient()])
    assert all(found[s.path]["gradient"].shape == (s.d_out, s.d_in) for s in sites)


def test_a_decoder_counts_the_tokens_of_its_labels():
    model = ARCHITECTURES["t5"].build(dtype=torch.float64)
    labels = torch.tensor([[5, 6, 7], [5, 6, -100]])
    batch = {"input_ids": IDS[:2], "attention_mask": torch.ones(2, 8, dtype=torch.long), "labels": labels}
    path = "decoder.block.1.layer.0.SelfAttention.q"
    found = collect(model, [batch], lt.select(model, path), [Moment()])[path]["moment"]
    alone = [{"input_ids": IDS[i : i + 1], "labels": labels[i : i + 1, :n]} for i, n in enumerate((3, 2))]
    rows = reads(model, path, alone)
    assert torch.allclose(found, rows.T @ rows / len(rows))


def test_a_place_that_no_token_reaches_is_told():
    model = build()
    with pytest.raises(lt.LuthierError, match=r"no token .* reached model\.layers"):
        collect(model, [], lt.select(model, "q_proj"), [Moment()])
    assert model(**ALONE[0]).logits.shape[1] == 8
