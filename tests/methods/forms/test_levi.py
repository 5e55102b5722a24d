"""LEVI: the average of heads over layers and a small model, in float64, and what either half is alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import luthier as lt
from luthier.methods.forms._small import patches, vector
from support.architectures import ARCHITECTURES, Architecture

BERT, VIT = ARCHITECTURES["bert"], ARCHITECTURES["vit"]


def moved(model, size: float = 0.3):
    draw = torch.Generator().manual_seed(5)
    for tensor in lt.trainable(model).values():
        tensor.data += size * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
    return model


def fitted(tried=BERT, **settings):
    return moved(lt.attach(tried.build(dtype=torch.float64), lt.LEVI(width=8, depth=1, **settings)))


def held(model) -> dict[str, torch.Tensor]:
    return {key.rpartition(".")[2]: t for key, t in lt.trainable(model).items()}


def padded() -> dict[str, torch.Tensor]:
    ids = BERT.inputs(3)["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def logits(model, given) -> torch.Tensor:
    with torch.no_grad():
        return model(**given).logits


def states(model, given) -> tuple[torch.Tensor, ...]:
    with torch.no_grad(), lt.disabled(model):
        return model(**given, output_hidden_states=True).hidden_states[1:]


@pytest.mark.parametrize("heads, layers", [(1, (2,)), (2, (1, 2)), (3, (0, 1, 2)), (9, (0, 1, 2))])
def test_it_is_the_mean_of_heads_over_layers_of_both(heads, layers):
    """ŷ = 1/J Σ_j (y + A_j [h_j; g] + b_j), written out, padding left out of every mean."""
    model, given = fitted(heads=heads), padded()
    p, mask = held(model), given["attention_mask"][..., None].double()
    assert lt.LEVI(heads=heads).layers_read(3) == layers and len(p["heads"]) == len(layers)
    g = vector(p, given["input_ids"], given["attention_mask"].bool(), 16, False)
    with lt.disabled(model):
        own = logits(model, given)
    each = []
    for j, layer in enumerate(layers):
        h = (states(model, given)[layer] * mask).sum(1) / mask.sum(1)
        each.append(own + torch.cat([h, g], 1) @ p["heads"][j].T + p["heads_bias"][j])
    assert torch.allclose(logits(model, given), torch.stack(each).mean(0), rtol=1e-10, atol=1e-10)


def test_without_the_columns_of_the_small_model_it_is_the_model_alone():
    """And without those of the layers it is the small model and the model's own head."""
    model, given = fitted(heads=2), padded()
    p = held(model)
    before = p["heads"].data.clone()
    p["heads"].data[..., 32:] = 0
    alone = logits(model, given)
    p["entry"].data.mul_(-3.0)
    p["up"].data.add_(1.0)
    assert torch.equal(logits(model, given), alone)
    mask = given["attention_mask"][..., None].double()
    means = [(states(model, given)[layer] * mask).sum(1) / mask.sum(1) for layer in (1, 2)]
    with lt.disabled(model):
        own = logits(model, given)
    wanted = own + sum(h @ a[:, :32].T + b for h, a, b in zip(means, before, p["heads_bias"], strict=True)) / 2
    assert torch.allclose(alone, wanted, rtol=1e-10, atol=1e-10)
    p["heads"].data = before.clone()
    p["heads"].data[..., :32] = 0
    g = vector(p, given["input_ids"], given["attention_mask"].bool(), 16, False)
    wanted = own + (p["heads"].mean(0)[:, 32:] @ g.T).T + p["heads_bias"].mean(0)
    assert torch.allclose(logits(model, given), wanted, rtol=1e-10, atol=1e-10)


def test_the_small_model_is_a_transformer_of_its_own():
    """Against torch's own encoder layer with the same weights; its padding is not seen."""
    p = {key: t.detach() for key, t in held(fitted()).items()}
    layer = torch.nn.TransformerEncoderLayer(
        8, 4, 32, 0.0, functional.gelu, batch_first=True, norm_first=True, bias=False
    ).double()
    for target, key in {
        layer.self_attn.in_proj_weight: "attention",
        layer.self_attn.out_proj.weight: "attention_out",
        layer.linear1.weight: "up",
        layer.linear2.weight: "down",
    }.items():
        target.data = p[key][0]
    layer.norm1.weight.data, layer.norm2.weight.data = p["norms"][0], p["norms"][1]
    ids, mask = padded()["input_ids"], padded()["attention_mask"]
    rates = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.arange(12)[:, None] * rates
    places = torch.stack([angles.sin(), angles.cos()], -1).flatten(1).double()
    out = layer.train()(p["entry"][ids] + places, src_key_padding_mask=mask == 0)
    out = functional.layer_norm(out, (8,), p["norms"][2]) * mask[..., None]
    wanted = out.sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(vector(p, ids, mask.bool(), 16, False), wanted, rtol=1e-6, atol=1e-7)


def test_it_starts_as_the_model_and_the_small_one_learns_from_step_two_on():
    model, given = lt.attach(BERT.build(dtype=torch.float64), lt.LEVI(width=8, depth=1)), padded()
    assert torch.equal(logits(model, given), logits(BERT.build(dtype=torch.float64), given))
    optimizer, norms = torch.optim.AdamW(lt.trainable(model).values(), lr=1e-2), []
    for _ in range(2):
        optimizer.zero_grad()
        model(**given, labels=torch.tensor([0, 1, 1])).loss.backward()
        norms.append({key: float(p.grad.norm()) for key, p in held(model).items()})  # type: ignore[union-attr]
        optimizer.step()
    assert {key for key, norm in norms[0].items() if norm} == {"heads", "heads_bias"}
    assert all(norms[1].values())


def test_a_padded_row_is_the_row_alone():
    model, given = fitted(), padded()
    alone = logits(model, {"input_ids": given["input_ids"][1:2, :7]})
    assert torch.allclose(logits(model, given)[1:2], alone, rtol=1e-9)


def test_a_decoder_that_classifies_has_it_at_each_token():
    """Its head is given every token, and the model takes the last one of a row."""
    settings = ARCHITECTURES["llama"].settings
    tried = Architecture("LlamaConfig", "LlamaForSequenceClassification", settings)
    model, given = fitted(tried), padded()
    alone = logits(model, {"input_ids": given["input_ids"][1:2, :7]})
    assert torch.allclose(logits(model, given)[1:2], alone, rtol=1e-6)
    with lt.disabled(model):
        assert not torch.allclose(logits(model, given), alone)


def test_rows_of_a_batch_have_heads_of_their_own():
    model = lt.attach(BERT.build(dtype=torch.float64), lt.LEVI(width=8, depth=1, heads=2), name="one")
    moved(lt.attach(model, lt.LEVI(width=12, depth=2, heads=3), name="two"))
    given = padded()
    with lt.rows(model, ["two", None, "one"]):
        mixed = logits(model, given)
    for row, off in enumerate(("one", None, "two")):
        own = {key: t[row : row + 1] for key, t in given.items()}
        with lt.disabled(model, off) if off else lt.disabled(model):
            assert torch.allclose(mixed[row : row + 1], logits(model, own), rtol=1e-9)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_pictures_spectrograms_and_sounds_come_in_patches(pool):
    for name, features in (("vit", 3 * 4 * 4), ("ast", 4 * 4), ("wav2vec2", 16)):
        tried = ARCHITECTURES[name]
        model = fitted(tried, patch=4, pool=pool)
        assert held(model)["entry"].shape == (8, features)
        assert bool(logits(model, tried.inputs(2, dtype=torch.float64)).isfinite().all())
    picture = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).double()
    cut = patches(picture, 2)
    assert cut.shape == (1, 6, 8)
    assert torch.equal(cut[0, 4], picture[0, :, 2:4, 2:4].flatten())
    assert torch.equal(patches(picture[0, :1].flatten(1), 2), picture[0, :1].flatten(1).view(1, 6, 4))


def test_it_is_refused_where_it_has_nothing_to_read():
    with pytest.raises(lt.LuthierError, match="CLIPModel has 2 "):
        lt.attach(ARCHITECTURES["clip"].build(), lt.LEVI())
    with pytest.raises(lt.LuthierError, match=r"levi\.patch is 8, and BertForSequenceClassification is given ids"):
        lt.attach(BERT.build(), lt.LEVI(patch=8))
    with pytest.raises(lt.LuthierError, match="multiple of 4"):
        lt.LEVI(width=6)
    model = fitted()
    with pytest.raises(lt.LuthierError, match="reads the model's input"):
        model(inputs_embeds=torch.randn(2, 5, 32, dtype=torch.float64))
    wave = fitted(ARCHITECTURES["wav2vec2"], patch=4)
    sounds = ARCHITECTURES["wav2vec2"].inputs(2, dtype=torch.float64)["input_values"]
    mask = torch.ones_like(sounds, dtype=torch.long)
    mask[1, 400:] = 0
    with pytest.raises(lt.LuthierError, match="it is not known which are padding"):
        wave(input_values=sounds, attention_mask=mask)
