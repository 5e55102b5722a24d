"""Layers that read the same tensor run as one, and give what they give alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.kernel import kernel_of, reference_implementation
from support.architectures import ARCHITECTURES

FORMS = [n for n in names("forms") if "linears" in vars(kernel_of(find("forms", n)) or object)]


def adapted(name: str, form: str, **settings) -> tuple[nn.Module, dict]:
    known = ARCHITECTURES[name]
    model = lt.attach(known.build(dtype=torch.float64), find("forms", form)(**settings))
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train(), known.inputs()


def run(model: nn.Module, inputs: dict) -> list[torch.Tensor]:
    torch.manual_seed(1)
    out = model(**inputs)[0]
    out.square().sum().backward()
    found = [out.detach(), *(p.grad.clone() for p in lt.trainable(model).values())]
    model.zero_grad()
    return found


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("name", "groups"), [("llama", {"q_proj": 2, "gate_proj": 1}), ("bert", {"query": 2})])
def test_a_probing_pass_finds_them(name, groups):
    model, _ = adapted(name, "lora")
    found = {
        path.rpartition(".")[2]: len(m.adapters.siblings)
        for path, m in model.named_modules()
        if "adapters" in m._modules
    }
    assert {key: count for key, count in found.items() if count} == groups


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_together_is_as_alone(form, name, monkeypatch):
    model, inputs = adapted(name, form)
    together = run(model, inputs)
    with reference_implementation():
        assert same(together, run(model, inputs))
    for container in lt.core.adapters.attach.state_of(model).containers:
        container.siblings = []
    assert same(together, run(model, inputs))


@pytest.mark.parametrize("form", FORMS)
def test_ranks_differ(form):
    known = ARCHITECTURES["llama"]
    model = known.build(dtype=torch.float64)
    sites = lt.select(model, "all-linear")
    lt.attach(model, find("forms", form)(), ranks={site.path: 1 + i % 4 for i, site in enumerate(sites)})
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    together = run(model, known.inputs())
    with reference_implementation():
        assert same(together, run(model, known.inputs()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_blocks(reentrant):
    model, inputs = adapted("llama", "lora", dropout=0.5)
    once = run(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert same(once, run(model, inputs))


class Three(nn.Module):
    """Query, key and value, of which the first is called with what the others may not get."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 5, dtype=torch.float64) for _ in range(3))
        self.turn = lambda x: x

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.q(x) + 2 * self.k(self.turn(x)) + 3 * self.v(x),)


def three() -> Three:
    model = lt.attach(Three(), lt.LoRA(rank=2), "q, k, v", check=False)
    for parameter in lt.trainable(model).values():
        parameter.data += torch.randn_like(parameter)
    model.q.adapters.siblings = [model.k, model.v]
    return model


@pytest.mark.parametrize("turn", [torch.sin, lambda x: x])
def test_who_is_called_with_another_tensor_goes_alone(turn):
    model = three()
    model.turn = turn
    x = {"x": torch.randn(3, 6, dtype=torch.float64)}
    found = run(model, x)
    with reference_implementation():
        expected = run(model, x)
    assert same(found, expected)


def test_one_that_is_silent_or_elsewhere_is_not_run_ahead():
    model, x = three(), torch.randn(3, 6, dtype=torch.float64)
    model.k.to("meta")
    model.q(x)
    assert set(model.q.adapters.current.prefetched.outputs) == {model.v.adapters}
    assert model.v(x) is not None and not model.q.adapters.current.prefetched.outputs


def test_a_copy_is_made_in_the_middle_of_a_pass():
    model, x = three(), torch.randn(3, 6, dtype=torch.float64)
    model.q(x)
    assert copy.deepcopy(model).q.adapters.current.prefetched is None
