"""The CPU backends give what torch gives, and the choice is measured once."""

from __future__ import annotations

import json

import pytest
import torch

import luthier as lt
from luthier.kernels import backend
from luthier.kernels.backend import PRODUCTS, Timing, cpu_backend, fastest, timings
from support.architectures import ARCHITECTURES


def losses(form, name: str) -> list[torch.Tensor]:
    """The loss, the logits and all gradients of a step."""
    model = ARCHITECTURES["llama"].build().float()
    torch.manual_seed(1)
    lt.attach(model, form)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    inputs = ARCHITECTURES["llama"].inputs(batch=4)
    with cpu_backend(name):
        out = model(**inputs, labels=inputs["input_ids"])
        out.loss.backward()
    return [out.loss, out.logits, *(p.grad for p in lt.trainable(model).values())]


@pytest.mark.parametrize("name", sorted(set(PRODUCTS) - {"mkl"}))
@pytest.mark.parametrize("form", [lt.LoRA(), lt.WeGeFT(), lt.DoRA(), lt.LoReFT(), lt.Bottleneck()])
def test_every_backend_gives_what_torch_gives(name, form, monkeypatch):
    if name not in timings():
        pytest.skip(f"{name} does not run on this processor")
    calls: list[int] = []
    product = PRODUCTS[name]

    def counted(*given):
        calls.append(1)
        return product(*given)

    own = losses(form, "mkl")
    monkeypatch.setitem(PRODUCTS, name, counted)
    other = losses(form, name)
    assert len(calls) > 20
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(own, other, strict=True))


def test_the_choice_is_measured_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    asked: list[int] = []
    found = {"mkl": Timing(1.0, 0.0), "onednn": Timing(0.5, 1e-7)}
    monkeypatch.setattr(backend, "timings", lambda: asked.append(1) or found)
    assert backend.chosen() == backend.chosen() == "onednn" and len(asked) == 1
    (tmp_path / "cpu.json").write_text("{broken")
    assert backend.chosen() == "onednn" and len(asked) == 2
    assert list(json.loads((tmp_path / "cpu.json").read_text()).values()) == ["onednn"]


def test_another_library_must_be_clearly_faster_and_equal():
    assert fastest({"mkl": Timing(1.0, 0.0), "onednn": Timing(0.95, 1e-7)}) == "mkl"
    assert fastest({"mkl": Timing(1.0, 0.0), "onednn": Timing(0.5, 1e-2)}) == "mkl"
    assert fastest({"mkl": Timing(1.0, 0.0), "onednn": Timing(0.5, 1e-7)}) == "onednn"


def test_an_unknown_backend_is_refused():
    with pytest.raises(lt.LuthierError, match=r"no CPU backend 'onedn'.*onednn"), cpu_backend("onedn"):
        pass


def test_a_trained_layer_keeps_its_gradient():
    layer, x = torch.nn.Linear(8, 8), torch.randn(32, 8)
    with cpu_backend("onednn-convolution"):
        layer(x).sum().backward()
    assert layer.weight.grad is not None
