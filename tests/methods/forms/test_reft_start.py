"""Where the ReFT family starts and how fast it moves, against what pyreft itself did (importing/record_pyreft.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.site import Site
from luthier.methods.forms._reft import ReFT, RotatedReFT, orthonormal, stored
from support.architectures import ARCHITECTURES
from support.pyreft_recorded import FOLDER, IDS, LR, STEPS, base, states

RECORDED = load_file(FOLDER / "turning.safetensors")
FAMILY = [name for name in names("forms") if issubclass(find("forms", name), ReFT)]
ROTATED = [name for name in FAMILY if issubclass(find("forms", name), RotatedReFT)]


def site(d: int) -> Site:
    return Site("layer", "stream", d, d, layer=0)


def trained(scale: float) -> dict[str, torch.Tensor]:
    """pyreft's steps, taken by a LoReFT whose stored tensor is `scale` R."""
    form, (h, wanted) = lt.LoReFT(rank=4, positions="all"), states()
    p = {"R": scale * RECORDED["R"], "W": RECORDED["W"], "b": RECORDED["b"]}
    p = {key: nn.Parameter(tensor.clone()) for key, tensor in p.items()}
    optimizer = torch.optim.Adam(p.values(), lr=LR)
    told, start = {"moves": [], "far": [], "losses": []}, orthonormal(p["R"]).detach()
    old = start
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (form.post(p, h, h) - wanted).pow(2).mean()
        loss.backward()
        optimizer.step()
        new = orthonormal(p["R"]).detach()
        for key, value in (("moves", (new - old).norm()), ("far", (new - start).norm()), ("losses", loss.detach())):
            told[key].append(value)
        old = new
    return {key: torch.stack(values) for key, values in told.items()}


def test_a_step_turns_r_as_far_as_pyrefts_and_the_losses_go_together():
    ours = trained(float((stored(RECORDED["R"]) / RECORDED["R"]).mean()))
    for key, most in (("moves", 0.08), ("far", 0.03), ("losses", 0.005)):
        apart = (ours[key] / RECORDED[key] - 1).abs()
        assert apart[:3].max() < 0.006 and apart.max() < most, key
    slow = trained(1.0)
    assert 0.49 < float(slow["moves"][0] / RECORDED["moves"][0]) < 0.51


@pytest.mark.parametrize("d, far", [(576, 0.122), (2048, 0.230)])
@pytest.mark.parametrize("name", ROTATED)
def test_one_step_at_the_papers_rate(name, d, far):
    torch.manual_seed(0)
    form = find("forms", name)(rank=8)
    p = {key: nn.Parameter(tensor) for key, tensor in form.init(site(d), {}).items()}
    start, optimizer = form.rotation(p).detach(), torch.optim.AdamW(p.values(), lr=form.lr, weight_decay=0.0)
    (form.rotation(p) * torch.randn(8, d)).sum().backward()
    optimizer.step()
    assert abs(float((form.rotation(p).detach() - start).norm()) - far) < 0.002


@pytest.mark.parametrize("name", ROTATED)
def test_adapters_of_rows_of_length_one_mean_the_same(name):
    """As they were saved before: R is that of the stored tensor, whatever its length."""
    form = find("forms", name)(rank=3)
    p, h = form.init(site(16), {}), torch.randn(5, 16)
    assert torch.allclose(p["R"].norm(dim=1), torch.tensor(0.5), atol=1e-6)
    assert torch.equal(form.post(p, h, h), form.post({**p, "R": 2 * p["R"]}, h, h))


def test_an_adapter_saved_before_the_start_was_halved_loads_to_its_outputs():
    """Its stored tensor is not touched, so that a run that is resumed goes on as it began."""
    model = lt.load(base("llama"), Path(__file__).with_name("loreft_before"))
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[0, -1, :5]
    known = [1.6714344024658203, -0.5765345096588135, -1.1904499530792236, -1.8724969625473022, -0.3662496507167816]
    assert torch.allclose(logits, torch.tensor(known), atol=1e-5)
    rotations = [t.detach() for key, t in lt.trainable(model).items() if key.endswith(".R")]
    assert rotations and all(0.6 < float(row.norm()) < 1.8 for t in rotations for row in t)


def test_dropout_is_of_the_whole_edited_state_as_in_pyreft():
    h, p = states()[0][:4], {key: RECORDED[key] for key in ("R", "W", "b")}
    quiet = lt.LoReFT(rank=4, positions="all").post(p, h, h)
    assert torch.allclose(quiet, RECORDED["kept"], atol=1e-5)
    for dropped in (RECORDED["dropped"], lt.LoReFT(rank=4, dropout=0.5, positions="all").post(p, h, h)):
        off = dropped == 0
        assert 0.4 < float(off.float().mean()) < 0.6
        assert torch.allclose(dropped, torch.where(off, 0, 2 * quiet), atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_dropout_falls_on_edited_positions_in_training_alone(name):
    def entering(model):
        """What the second block gets: the edited stream."""
        seen = []
        with model.model.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0])):
            model(**inputs)
        return seen[0].detach()

    inputs = ARCHITECTURES["llama"].inputs(length=10)
    where = "stream & layers(0)"
    form = find("forms", name)
    torch.manual_seed(0)
    calm = lt.attach(ARCHITECTURES["llama"].build(), form(positions="f2+l1"), where)
    torch.manual_seed(0)
    model = lt.attach(ARCHITECTURES["llama"].build(), form(dropout=0.5, positions="f2+l1"), where)
    assert torch.equal(entering(model), entering(calm))
    noisy, quiet = entering(model.train()), entering(calm)
    edited = torch.zeros(10, dtype=torch.bool)
    edited[[0, 1, -1]] = True
    assert torch.equal(noisy[:, ~edited], quiet[:, ~edited])
    off = noisy == 0
    assert 0.3 < float(off[:, edited].float().mean()) < 0.7
    assert torch.allclose(noisy[:, edited], torch.where(off, 0, 2 * quiet)[:, edited], atol=1e-5)
