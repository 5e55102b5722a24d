"""Projected gradients of single rows: exact against a loop, whatever the form, and products are kept on average."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.core.sites.per_sample import Projection, per_sample
from luthier.core.sites.select import select
from luthier.methods.row_model import row_losses
from support.architectures import ARCHITECTURES

ROWS, LENGTH = 5, 9


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded on the right, prompts out of the loss."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (ROWS, LENGTH), generator=draw)
    mask = torch.ones_like(ids)
    for row in range(ROWS):
        mask[row, LENGTH - row :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loop(model, names: list[str]) -> torch.Tensor:
    """The gradient of each row's mean cross-entropy by autograd, one row after another (transformers' is float32)."""
    found, held = [], dict(model.named_parameters())
    rows = batch()
    for row in range(ROWS):
        one = {key: value[row : row + 1] for key, value in rows.items()}
        loss = torch.nn.functional.cross_entropy(model(**one).logits[0, :-1], one["labels"][0, 1:])
        grads = torch.autograd.grad(loss, [held[name] for name in names], allow_unused=True)
        zero = (torch.zeros_like(held[name]) for name in names)
        found.append(torch.cat([(z if g is None else g).flatten() for g, z in zip(grads, zero, strict=True)]))
    return torch.stack(found)


def gradients(model, where: str | None, projection: Projection) -> torch.Tensor:
    sites = None if where is None else list(select(model, where))
    return torch.cat(list(per_sample(model, [batch()], row_losses, sites=sites, projection=projection)))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_batched_gradients_are_those_of_a_loop(name):
    model = ARCHITECTURES[name].build(dtype=torch.float64)
    sites = list(select(model, "all-linear"))
    exact = gradients(model, "all-linear", Projection(None))
    wanted = loop(model, [f"{site.path}.weight" for site in reversed(sites)])
    blocks = {f"{site.path}.weight": site.d_in * site.d_out for site in sites}
    assert exact.shape == (ROWS, sum(blocks.values()))
    # layers come as the backward pass meets them, which is for each architecture to say
    assert torch.allclose(exact.norm(dim=1), wanted.norm(dim=1), rtol=1e-10)
    assert torch.allclose(exact @ exact.mT, wanted @ wanted.mT, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_both_ways_project_alike():
    """All rows at once, through the layers, and one at a time, through the gradients of the weights."""
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    by_batch = gradients(model, "all-linear", Projection(64, seed=3))
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path.removesuffix(".weight") in {s.path for s in select(model, "all-linear")})
    by_row = gradients(model, None, Projection(64, seed=3))
    assert by_batch.shape == (ROWS, 64) and torch.allclose(by_batch, by_row, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(by_batch, gradients(model, None, Projection(64, seed=4)), atol=1e-3)


@pytest.mark.parametrize(
    "form", [lt.LoRA(rank=2), lt.DoRA(rank=2), lt.LoReFT(rank=2), lt.WeGeFT(rank=2), lt.IA3()], ids=lambda f: f.name()
)
def test_rows_of_any_form(form):
    """The adapter's own parameters, every one of them, against autograd."""
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    lt.attach(model, form)
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and ".adapters." in path:
            parameter.data += 0.1 * torch.randn_like(parameter)  # away from a start where most gradients are zero
    names = [path for path, parameter in model.named_parameters() if parameter.requires_grad]
    found, wanted = gradients(model, None, Projection(None)), loop(model, names)
    assert found.shape == wanted.shape and wanted.abs().max() > 1e-4
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-11)


def test_products_are_kept_on_average():
    model = ARCHITECTURES["llama"].build(dtype=torch.float64)
    first = "all-linear & layers(0, 0)"
    exact = gradients(model, first, Projection(None))
    wanted = exact @ exact.mT
    found = torch.stack([(p := gradients(model, first, Projection(256, s))) @ p.mT for s in range(40)])
    error = (found.mean(0) - wanted).norm() / wanted.norm()
    assert error < 0.1 < ((found - wanted).norm(dim=(1, 2)) / wanted.norm()).mean() < 0.5


def test_what_has_no_gradient_is_refused():
    model = ARCHITECTURES["llama"].build()
    with pytest.raises(LuthierError, match="expected a square number, as 1024"):
        Projection(1000)
    with pytest.raises(LuthierError, match="not a linear layer"):
        gradients(model, "output(mlp)", Projection(4))
    lt.attach(model, lt.LoRA(rank=2), "q_proj")
    with pytest.raises(LuthierError, match="has an adapter"):
        gradients(model, "q_proj", Projection(4))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(LuthierError, match="no parameter of this model is trained"):
        gradients(model, None, Projection(4))


def test_labels_of_classes_and_of_encoders():
    """Rows of a classifier and of an encoder with a decoder: the mean of the rows' losses is the model's own."""
    bert = ARCHITECTURES["bert"].build(dtype=torch.float64)
    rows = {k: v for k, v in batch().items() if k != "labels"}
    known = rows | {"labels": torch.tensor([0, 1, 0, 1, 1])}
    assert torch.allclose(row_losses(bert, known).mean(), bert(**known).loss, atol=1e-5)
    t5 = ARCHITECTURES["t5"].build(dtype=torch.float64)
    one = {key: value[:1] for key, value in batch().items()}
    assert torch.allclose(row_losses(t5, one)[0], t5(**one).loss.double(), atol=1e-5)
