"""Conformer adapters: the equation, what a convolution along the row must not see, and where they fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import luthier as lt
from luthier.core.contracts.form import ROW_MASK
from luthier.core.contracts.site import Site
from luthier.core.sites.packing import packed
from support.architectures import ARCHITECTURES, base_of

SITE = Site("block", "stream", 12, 12)


def away(form: lt.Conformer) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {k: torch.randn(t.shape, generator=draw).double() for k, t in form.init(SITE, {}).items()}


def moved(model, size: float = 0.3):
    draw = torch.Generator().manual_seed(5)
    for tensor in lt.trainable(model).values():
        tensor.data += size * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
    return model


def authors_module(p: dict[str, torch.Tensor], form: lt.Conformer) -> nn.Sequential:
    """The convolution module in torch's own layers, as theirs has them; a fresh batch norm divides by sqrt(1 + eps)."""
    wide, narrow = nn.Conv1d(12, 2 * form.dim, 1), nn.Conv1d(form.dim, 12, 1)
    along = nn.Conv1d(form.dim, form.dim, form.kernel, groups=form.dim, padding="same")
    held = {wide: ("down", "down_bias"), along: ("kernel", "kernel_bias"), narrow: ("up", "up_bias")}
    for layer, (weight, bias) in held.items():
        layer.double()
        layer.weight.data, layer.bias.data = p[weight].view(layer.weight.shape), p[bias]  # type: ignore[union-attr]
    norm = nn.BatchNorm1d(form.dim, eps=0.0).double().eval()
    return nn.Sequential(wide, nn.GLU(dim=1), along, norm, nn.SiLU(), narrow)


@pytest.mark.parametrize("insertion", ["sequential", "parallel"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_it_is_the_convolution_module_of_the_conformer(insertion, kernel):
    form = lt.Conformer(dim=3, kernel=kernel, insertion=insertion, norm="none", scale=0.5)
    p, x, y = away(form), torch.randn(2, 7, 12).double(), torch.randn(2, 7, 12).double()
    read = functional.layer_norm(y if insertion == "sequential" else x, (12,), p["gain"], p["shift"])
    wanted = y + 0.5 * authors_module(p, form)(read.mT).mT
    assert torch.allclose(form.post(p, x, y), wanted, rtol=1e-12, atol=1e-12)


def test_by_hand_with_the_norm_over_channels():
    form = lt.Conformer(dim=3, kernel=3, insertion="parallel")
    p, x, y = away(form), torch.randn(1, 4, 12).double(), torch.randn(1, 4, 12).double()
    h = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * p["gain"] + p[
        "shift"
    ]
    u, v = (h @ p["down"].T + p["down_bias"]).chunk(2, -1)
    z = functional.pad(u / (1 + (-v).exp()), (0, 0, 1, 1))
    c = sum(z[:, i : i + 4] * p["kernel"][:, i] for i in range(3)) + p["kernel_bias"]
    c = (c - c.mean(-1, keepdim=True)) / (c.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    c = c * p["inner_gain"] + p["inner_shift"]
    wanted = y + (c / (1 + (-c).exp())) @ p["up"].T + p["up_bias"]
    assert torch.allclose(form.post(p, x, y), wanted, rtol=1e-10, atol=1e-10)


def test_padding_is_not_seen_and_an_image_is_read_row_by_row():
    form = lt.Conformer(dim=3, kernel=5)
    p, x, y = away(form), torch.randn(2, 6, 12).double(), torch.randn(2, 6, 12).double()
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    padded = form.post(p | {ROW_MASK: mask}, x, y)
    assert torch.allclose(padded[1, :4], form.post(p, x[1:, :4], y[1:, :4])[0], rtol=1e-12)
    assert not torch.allclose(form.post(p, x, y)[1, :4], padded[1, :4])
    image = form.post(p, x.view(2, 2, 3, 12), y.view(2, 2, 3, 12))
    assert torch.equal(image, form.post(p, x, y).view(2, 2, 3, 12))
    with pytest.raises(lt.LuthierError, match="without rows of tokens"):
        form.post(p, x[0], y[0])


PLACES = {"pfeiffer": "output(mlp)", "houlsby": "output(attention), output(mlp)"}


@pytest.mark.parametrize("insertion", ["sequential", "parallel"])
@pytest.mark.parametrize("place", PLACES)
def test_it_starts_as_a_no_op_and_all_learns_from_step_two_on(place, insertion):
    tried = ARCHITECTURES["ast"]
    given, labels = tried.inputs(3, dtype=torch.float64), torch.tensor([0, 1, 1])
    model = lt.attach(
        tried.build(dtype=torch.float64), lt.Conformer(dim=4, kernel=3, insertion=insertion), PLACES[place]
    )
    assert torch.equal(model(**given).logits, tried.build(dtype=torch.float64)(**given).logits)
    optimizer, norms = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2), []
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(**given).logits, labels).backward()
        norms.append({key: float(p.grad.norm()) for key, p in lt.trainable(model).items()})  # type: ignore[union-attr]
        optimizer.step()
    assert len(norms[0]) == 10 * 3 * (1 + (place == "houlsby"))
    assert {k.rpartition(".")[2] for k, norm in norms[0].items() if norm} == {"up", "up_bias"}
    assert all(norms[1].values())


def test_frames_of_sounds_are_masked_as_the_model_masks_them(monkeypatch):
    """wav2vec 2.0 is given samples and their padding; its blocks have frames, and a mask of these."""
    tried, seen, post = ARCHITECTURES["wav2vec2"], [], lt.Conformer.post
    model = lt.attach(tried.build(), lt.Conformer(dim=4, kernel=9))
    sounds = tried.inputs(2)["input_values"]
    mask = torch.ones_like(sounds, dtype=torch.long)
    mask[1, 400:] = 0
    monkeypatch.setattr(lt.Conformer, "post", lambda form, p, x, y: seen.append((p, y)) or post(form, p, x, y))
    model(input_values=sounds * mask, attention_mask=mask)
    frames = model.wav2vec2._get_feature_vector_attention_mask(seen[0][1].shape[1], mask)
    assert len(seen) == 3 and 0 < int(frames[1].sum()) < frames.shape[1]
    assert all(torch.equal(p[ROW_MASK], frames.bool()) for p, _ in seen)
    seen.clear()
    model(input_values=sounds, attention_mask=torch.ones_like(mask))
    assert all(bool(p[ROW_MASK].all()) for p, _ in seen if ROW_MASK in p)


def test_rows_of_a_packed_batch_do_not_meet():
    model = moved(lt.attach(base_of("conformer").build(dtype=torch.float64), lt.Conformer(dim=4, kernel=7)))
    ids = base_of("conformer").inputs(3)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 5:], mask[2, 8:] = 0, 0
    with torch.no_grad(), packed(model):
        together = model(input_ids=ids, attention_mask=mask).logits
        other = model(input_ids=ids.roll(1, 1) * mask + ids * (1 - mask), attention_mask=mask).logits
    for row, length in enumerate((5, 12, 8)):
        alone = model(input_ids=ids[row : row + 1, :length]).logits[0]
        assert torch.allclose(together[row, :length], alone, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(other, together)


@pytest.mark.parametrize("where", ["head", "stream"])
def test_outside_the_blocks_a_padded_row_gives_what_it_gives_alone(where):
    import transformers as tf

    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = tf.BertForTokenClassification(config).double().eval()
    moved(lt.attach(model, lt.Conformer(dim=3, kernel=5), where=where))
    ids = torch.randint(4, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    with torch.no_grad():
        beside = model(ids, attention_mask=mask).logits[0, :6]
        alone = model(ids[:1, :6], attention_mask=mask[:1, :6]).logits[0]
    assert torch.allclose(beside, alone, rtol=0, atol=1e-12)


def test_a_kernel_has_a_middle():
    with pytest.raises(lt.LuthierError, match="kernel is 4; expected an odd number"):
        lt.Conformer(kernel=4)
