"""A law of fingerprints: another tensor anywhere makes another base, in every architecture at every depth."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import luthier as lt
from luthier.core.sites.structure import block_lists
from luthier.core.storage.fingerprint import compared, differences, fingerprint
from support.architectures import ARCHITECTURES
from support.thinned import thinned

DEPTHS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"}
SOME = (1, 2, 3, 12, 24, 48)


def deepened(settings: dict[str, Any], depth: int) -> dict[str, Any]:
    inner = {key: deepened(each, depth) for key, each in settings.items() if isinstance(each, dict)}
    return {**settings, **dict.fromkeys(DEPTHS & set(settings), depth), **inner}


def build(name: str, depth: int):
    architecture = ARCHITECTURES[name]
    return dataclasses.replace(architecture, settings=deepened(architecture.settings, depth)).build()


def weights(model) -> dict[str, torch.Tensor]:
    return {path: t for path, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}


CASES = [*thinned(list(ARCHITECTURES), SOME, share=2), *(("llama", depth) for depth in range(4, 48, 5))]


@pytest.mark.parametrize(("name", "depth"), CASES)
def test_every_tensor_counts(name, depth):
    """Each has a digest of its own that moves with it, in whichever corner it changes, and one moved is refused."""
    model = build(name, depth)
    assert max(map(len, block_lists(model).values())) == depth
    before, held = fingerprint(model), weights(model)
    assert before["digests"].keys() == held.keys() and None not in before["digests"].values()
    inside = tuple(f"{path}." for path in block_lists(model))
    assert compared(before, before, inside) is None
    for number, tensor in enumerate(dict.fromkeys(held.values())):
        place = (number * 7919) % tensor.numel()
        with torch.no_grad():
            tensor.view(-1)[place] += 0.5
    after = fingerprint(model)
    assert all(after["digests"][path] != before["digests"][path] for path in held)
    for path in held:
        one = {**before, "digests": before["digests"] | {path: after["digests"][path]}}
        assert f"first in {path})" in str(compared(before, one, inside))


@pytest.mark.parametrize("kind", ["q", "k", "v", "o"])
@pytest.mark.parametrize("depth", [12, 22, 24, 32])
def test_an_adapter_does_not_load_beside_another_projection(kind, depth, tmp_path):
    folder = lt.save(lt.attach(build("llama", depth), lt.LoRA(rank=2), "q_proj"), tmp_path / "adapter")
    other = build("llama", depth)
    for block in other.model.layers:
        block.self_attn.get_submodule(f"{kind}_proj").weight.data += 1e-4
    with pytest.raises(
        lt.LuthierError, match=rf"weights differ \(first in model.layers.0.self_attn.{kind}_proj.weight"
    ):
        lt.load(other, folder)


def test_one_row_of_a_large_table_counts():
    """A token's embedding that was changed is seen, whichever of 50,000."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(50_000, 64)
    stored = fingerprint(table)
    for row in (0, 1, 12_345, 49_999):
        with torch.no_grad():
            before = table.weight[row].clone()
            table.weight[row] = 1 - before
        assert fingerprint(table)["digests"] != stored["digests"]
        with torch.no_grad():
            table.weight[row] = before
    assert fingerprint(table) == stored


def test_another_precision_is_the_same_base_and_another_tensor_is_not():
    model = build("qwen2", 12)
    stored = fingerprint(model)
    assert differences(stored, model.to(torch.bfloat16)) is None
    model.model.layers[7].mlp.up_proj.weight.data.normal_()
    assert "layers.7.mlp.up_proj" in str(differences(stored, model))


def test_a_tied_head_that_was_cut_loose_counts():
    model = build("gemma3", 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    stored = fingerprint(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert differences(stored, model) is None
    model.lm_head.weight.data[3] *= 2
    assert "first in lm_head.weight" in str(differences(stored, model))


def test_a_new_head_does_not_count_where_the_adapter_brings_it(tmp_path):
    model = lt.attach(build("bert", 2), lt.LoRA(rank=2), "query")
    lt.attach(model, lt.Full(), "params(classifier.*)")
    folder = lt.save(model, tmp_path / "adapter")
    other = build("bert", 2)
    other.classifier.weight.data.normal_()
    assert lt.load(other, folder)
    other = build("bert", 2)
    other.bert.pooler.dense.weight.data.normal_()
    with pytest.raises(lt.LuthierError, match=r"first in bert\.pooler\.dense\.weight"):
        lt.load(other, folder)
