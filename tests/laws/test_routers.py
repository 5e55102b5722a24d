"""The laws of routers, over the forms that route: a new file is tested the day it is dropped in."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.adapters.control import tensors, watched
from luthier.core.adapters.lower import affine_map
from luthier.core.adapters.swap import adapters_of
from luthier.core.contracts.component import find, names
from luthier.core.contracts.router import Routed, names_of, routing
from luthier.core.contracts.site import Site
from support.architectures import ARCHITECTURES

ROUTED = [name for name in names("forms") if issubclass(find("forms", name), Routed)]
ROUTERS = [name for name in ROUTED if find("forms", name).mixed]  # type: ignore[attr-defined]
"""Those that mix experts of a linear layer; the others have tests of their own beside the laws of forms."""
SITE = Site("layer", "affine", 12, 8)


def made(name: str, **settings) -> Routed:
    form = find("forms", name).from_dict(settings)
    assert isinstance(form, Routed)
    return form


def moved(form: Routed) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = {key: tensor.double() for key, tensor in form.init(SITE, {}).items()}
    return {key: t + torch.randn(t.shape, generator=generator, dtype=torch.float64) for key, t in found.items()}


def attached(form: Routed):
    model = lt.attach(ARCHITECTURES["qwen2"].build(dtype=torch.float64), form, "q_proj, down_proj")
    generator = torch.Generator().manual_seed(5)
    for tensor in tensors(model).values():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES["qwen2"].inputs(2, 12)).logits


@pytest.mark.parametrize("name", ROUTERS)
def test_it_says_what_routes_and_what_is_mixed(name):
    form = made(name)
    held = set(form.init(SITE, {}))
    assert held == {*form.router, *form.mixed} and form.router and form.mixed
    assert len(set(form.known())) == len(form.known())


@pytest.mark.parametrize("train", ["all", "router"])
@pytest.mark.parametrize("name", ROUTERS)
def test_weights_sum_to_one_and_none_is_negative(name, train):
    form, p = made(name, train=train), moved(made(name))
    for x in (torch.randn(3, 5, 12).double(), 1e3 * torch.randn(3, 5, 12).double()):
        found = form.route(p, x)
        weights = form.weights(found)
        assert weights.shape == found.shape and (weights >= 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(()).double(), rtol=1e-12)


@pytest.mark.parametrize("name", ROUTERS)
def test_one_expert_is_that_adapter_whatever_the_router(name):
    form = made(name, **dict(made(name).neutral))
    p, x, y = moved(form), torch.randn(3, 5, 12).double(), torch.randn(3, 5, 8).double()
    face = routing(form)
    one = face(p, x, y)
    others = {key: torch.randn_like(tensor) if key in form.router else tensor for key, tensor in p.items()}
    assert torch.equal(face(others, x, y), one)
    change = face(p, torch.eye(12).double()[None], torch.zeros(1, 12, 8).double())[0].mT
    assert torch.allclose(one, y + x @ change.mT, rtol=1e-10)
    assert torch.linalg.matrix_rank(change) <= form.to_dict()["rank"]


@pytest.mark.parametrize("name", ROUTERS)
def test_the_router_alone_trains_where_asked(name):
    model = attached(made(name, train="router"))
    keys = {key.rpartition(".")[2] for key in lt.trainable(model)}
    assert keys == set(made(name).router)
    model(**ARCHITECTURES["qwen2"].inputs(2, 12)).logits.pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lt.trainable(model).values())


@pytest.mark.parametrize("name", ROUTERS)
def test_watching_tells_each_site_and_changes_nothing(name):
    model = attached(made(name))
    before = logits(model)
    with watched(model) as routes:
        assert torch.equal(logits(model), before)
    assert {route.path for route in routes} == {site.path for site in lt.select(model, "q_proj, down_proj")}
    assert all(torch.allclose(r.form.weights(r.logits).sum(-1), torch.ones(()).double()) for r in routes)
    count = len(routes)
    logits(model)
    assert len(routes) == count


@pytest.mark.parametrize("name", ROUTERS)
def test_it_merges_only_where_one_weight_says_it_all(name, tmp_path):
    model = attached(made(name))
    tuners = adapters_of(model.get_submodule("model.layers.0.self_attn.q_proj")).tuners()  # type: ignore[union-attr]
    if made(name).linear and len(names_of(tuners[0].form)) < 2:
        adapted = logits(model)
        assert torch.allclose(logits(lt.merge(model)), adapted, rtol=1e-9)
        assert affine_map(model.get_submodule("model.layers.0.self_attn.q_proj"), tuners)[0].isfinite().all()
        return
    with pytest.raises(lt.LuthierError, match="cannot be merged"):
        lt.merge(model)
