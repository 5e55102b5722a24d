"""A model without its weakest heads and channels: smaller, read by transformers, the same where nothing was lost."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.interop.formats._pruned import COUNTS, channel_scores, head_dim, head_scores
from support.shipped import build, byte_level, moved

CASES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
SIZES = {"vocab_size": 424, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def adapted(case: str, folder):
    """(the adapted model, a base of the same weights); the adapter is saved in `folder`."""
    torch.manual_seed(0)
    model = build(case, **SIZES)
    base = build(case, **SIZES)
    base.load_state_dict(model.state_dict())
    moved(lt.attach(model, lt.LoRA(rank=2), where="all-linear"))
    lt.save(model, folder)
    return model, base


@pytest.mark.parametrize("case", CASES)
def test_what_does_nothing_is_what_goes(case, tmp_path):
    model, base = adapted(case, tmp_path / "adapter")
    head = head_dim(model.config)
    lt.merge(model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, : 2 * head] = 0  # the heads of the first group
            layer.mlp.down_proj.weight[:, 5::4] = 0
    plain = build(case, **SIZES)
    plain.load_state_dict({key: t for key, t in model.state_dict().items() if ".adapters." not in f".{key}"})
    lt.save(lt.attach(plain, lt.LoRA(rank=2), where="q_proj"), tmp_path / "none")
    lt.detach(plain)
    to = lt.formats.Pruned(heads=0.5, channels=11 / 48)
    lost = lt.export(tmp_path / "none", tmp_path / "out", to=to, base=plain, processor=byte_level())
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(12, 60).reshape(2, 24)
    with torch.no_grad():
        assert torch.allclose(made(ids).logits, plain(ids).logits, atol=1e-5)
    assert lost == {}
    assert [getattr(made.config, key) for key in COUNTS] == [2, 1, 37]
    assert made.num_parameters() < base.num_parameters()


def test_scores_are_the_norms_of_what_each_brings():
    generator = torch.Generator().manual_seed(0)
    drawn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = {"v_proj.weight": drawn(6, 10), "o_proj.weight": drawn(10, 12)}  # two groups of two heads of width 3
    found = head_scores(tensors, "", 3, 2)
    for group in range(2):
        value = tensors["v_proj.weight"][3 * group : 3 * group + 3]
        heads = [tensors["o_proj.weight"][:, 6 * group + 3 * h : 6 * group + 3 * h + 3] for h in range(2)]
        assert torch.isclose(found[group], sum((out @ value).norm() for out in heads))
    tensors = {"up_proj.weight": drawn(5, 4), "gate_proj.weight": drawn(5, 4), "down_proj.weight": drawn(4, 5)}
    up, gate, down = (tensors[f"{name}_proj.weight"] for name in ("up", "gate", "down"))
    wanted = torch.stack([up[j].norm() * gate[j].norm() * down[:, j].norm() for j in range(5)])
    assert torch.allclose(channel_scores(tensors, ""), wanted)


def test_it_goes_on_training_and_tells_what_was_lost(tmp_path):
    _, base = adapted("llama", tmp_path / "adapter")
    to = lt.formats.Pruned(channels=0.25)
    lost = lt.export(tmp_path / "adapter", tmp_path / "out", to=to, base=base, processor=byte_level())
    assert len(lost) == base.config.num_hidden_layers and all(0 < share < 1 for share in lost.values())
    made = lt.model(str(tmp_path / "out")).model
    lt.attach(made, lt.LoRA(rank=2), where="all-linear")
    ids = torch.arange(12, 36)[None]
    made(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in lt.trainable(made).values())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"channels": 0.0}, "leaves nothing out"),
        ({"heads": 1.0}, "expected a share from 0 to below 1"),
        ({"channels": -0.1}, "expected a share from 0 to below 1"),
    ],
)
def test_shares_are_checked(settings, why):
    with pytest.raises(LuthierError, match=why):
        lt.formats.Pruned(**settings)


def test_models_that_cannot_be_smaller_are_refused_before_anything_is_written(tmp_path):
    _, base = adapted("llama", tmp_path / "adapter")
    for to, why in [
        (lt.formats.Pruned(heads=0.2, channels=0.0), "leaves 2 of 2 groups of heads in each block"),
        (lt.formats.Pruned(channels=0.999), "leaves 0 of 48 channels in each block"),
    ]:
        with pytest.raises(LuthierError, match=why):
            lt.export(tmp_path / "adapter", tmp_path / "out", to=to, base=base, processor=byte_level())
    torch.manual_seed(0)
    wide = Olmo2ForCausalLM(Olmo2Config(**SIZES | {"num_key_value_heads": 4}, hidden_size=32, num_hidden_layers=2))
    lt.save(lt.attach(wide, lt.LoRA(rank=2), where="q_proj"), tmp_path / "wide")
    lt.detach(wide)
    with pytest.raises(LuthierError, match=r"q_norm.weight would be"):  # a norm over all heads
        to = lt.formats.Pruned(heads=0.25, channels=0.0)
        lt.export(tmp_path / "wide", tmp_path / "out", to=to, base=wide, processor=byte_level())
    lt.save(lt.attach(build("gpt2"), lt.LoRA(rank=2)), tmp_path / "other")
    with pytest.raises(LuthierError, match="expected one stack of blocks with q_proj"):
        to = lt.formats.Pruned(channels=0.5)
        lt.export(tmp_path / "other", tmp_path / "out", to=to, base=build("gpt2"), processor=byte_level())
    assert not (tmp_path / "out").exists()
