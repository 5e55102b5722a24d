"""QLoRA: a 4-bit base carries gradients to the adapters alone, and its weights are near those it was packed from."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier.cli import main
from luthier.core.sites.structure import features, weight_of
from luthier.training import Run, Training, metrics, train
from support.tiny import save_model

pytest.importorskip("bitsandbytes")
GAP = 0.3038 / 2
"""Half the widest gap between two values of NF4, from -1 to -0.6962."""
BLOCK = 64
"""Weights that share a scale."""
WIDTHS = {"hidden_size": BLOCK, "intermediate_size": 2 * BLOCK, "head_dim": BLOCK // 4}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> str:
    """bitsandbytes unpacks only rows of whole blocks rightly on a CPU."""
    return save_model(tmp_path_factory.mktemp("wide"), "llama", **WIDTHS)


def test_the_recipe_trains_a_packed_base(wide, additions, tmp_path):
    folder = tmp_path / "run"
    code = main(["train", wide, additions, "--recipe", "tslam", "--steps", "12", "--lr", "5e-3", "--out", str(folder)])
    assert code == 0
    losses = [line["loss"] for line in metrics.read(folder) if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    settings = json.loads((folder / "adapter" / "adapter.json").read_text())["parts"][0]["settings"]
    assert (settings["rank"], settings["alpha"], settings["dropout"]) == (64, 16.0, 0.1)
    base = lt.model(wide, quantize="nf4", dtype="bfloat16").model
    lt.load(base, folder / "adapter")
    assert all(".adapters." not in name for name, p in base.named_parameters() if not p.requires_grad)


def test_an_eight_bit_base_trains(llama, additions, tmp_path):
    pytest.importorskip("torchao")
    settings = Training(steps=12, batch=16, lr=1e-2, quantize="int8", eval_fraction=0)
    result = train(Run(llama, additions, lt.LoRA(rank=4), out=str(tmp_path / "run"), training=settings), progress=False)
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_only_adapters_get_gradients_and_the_base_stays(wide):
    model = lt.attach(lt.model(wide, quantize="nf4", dtype="bfloat16").model, lt.LoRA(rank=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".adapters." not in name}
    ids = torch.arange(4, 20)[None]
    optimizer = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == {
            name for name, p in model.named_parameters() if ".adapters." in name
        }
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_packed_weights_lie_within_half_a_gap_of_the_dense_ones(wide):
    dense, packed = lt.model(wide).model, lt.attach(lt.model(wide, quantize="nf4").model, lt.LoRA(rank=4))
    layers = [path for path, m in packed.named_modules() if features(m) and m.weight.dtype == torch.uint8]
    assert len(layers) == 3 * 7
    for path in layers:
        wanted, found = dense.get_submodule(path).weight.detach(), weight_of(packed.get_submodule(path))
        scale = wanted.reshape(-1, BLOCK).abs().amax(1, keepdim=True)
        error = (found - wanted).abs().reshape(-1, BLOCK)
        assert bool((error <= (GAP + 0.02) * scale + 1e-3).all())  # scales are packed too, to 8 bits
        assert error.max() > 0


def test_widths_that_bitsandbytes_unpacks_wrongly_are_told(llama):
    with pytest.warns(UserWarning, match="not a multiple of 64"):
        lt.model(llama, quantize="nf4")
