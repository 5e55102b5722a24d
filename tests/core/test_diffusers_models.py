"""The parts of diffusion pipelines, small, of diffusers and transformers: forms act, merge exactly, and are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import luthier as lt

Part = tuple[Callable[[], nn.Module], Callable[[Any], torch.Tensor]]
FORMS: dict[str, tuple[lt.Form, str]] = {
    "lora": (lt.LoRA(rank=2), "all-linear | conv"),
    "wegeft": (lt.WeGeFT(rank=2), "all-linear | conv"),
    "dora": (lt.DoRA(rank=2), "all-linear | conv"),
    "sparse": (lt.Sparse(density=0.1), "all-linear | conv"),
    "full": (lt.Full(), "params(*.weight)"),
}
UNUSED = {"sd3": "transformer_blocks.1.attn.add_q_proj"}
"""What a model computes and does not read: the text's queries of the last block of SD3."""


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def clip() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2))


def dit() -> nn.Module:
    return pytest.importorskip("diffusers").DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )


def sd3() -> nn.Module:
    return pytest.importorskip("diffusers").SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip


def unet() -> nn.Module:
    return pytest.importorskip("diffusers").UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    return pytest.importorskip("diffusers").AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


IDS, TIMES = torch.tensor([[5, 6, 7, 1], [9, 3, 4, 1]]), torch.tensor([3, 7])
PARTS: dict[str, Part] = {
    "clip": (clip, lambda m: m(input_ids=IDS).last_hidden_state),
    "t5": (t5, lambda m: m(input_ids=IDS).last_hidden_state),
    "dit": (dit, lambda m: m(drawn(2, 4, 8, 8), timestep=TIMES, class_labels=torch.tensor([1, 2])).sample),
    "sd3": (
        sd3,
        lambda m: (
            m(
                hidden_states=drawn(2, 4, 8, 8),
                encoder_hidden_states=drawn(2, 5, 16),
                pooled_projections=drawn(2, 16),
                timestep=TIMES.double(),
            ).sample
        ),
    ),
    "unet": (unet, lambda m: m(drawn(2, 4, 8, 8), TIMES, encoder_hidden_states=drawn(2, 5, 16)).sample),
    "autoencoder": (autoencoder, lambda m: m(drawn(2, 3, 16, 16)).sample),
}


def made(part: str) -> nn.Module:
    """A part with random numbers, also where its class begins at zero."""
    torch.manual_seed(0)
    model = PARTS[part][0]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("part", list(PARTS))
def test_a_form_on_linear_layers_and_convolutions_merges_and_comes_back(part, form, tmp_path):
    model, call = made(part), PARTS[part][1]
    before = call(model).detach()
    made_form, where = FORMS[form]
    if part in ("clip", "t5"):
        where = where.removesuffix(" | conv")
    lt.attach(model, made_form, where)
    assert torch.allclose(call(model), before, atol=1e-10)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lt.trainable(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = call(model)
    after.square().sum().backward()
    idle = [name for name, p in lt.trainable(model).items() if p.grad is None or not p.grad.any()]
    assert all(UNUSED.get(part, "-") in name for name in idle)
    lt.save(model, tmp_path / "adapter", base="tiny")
    fresh = lt.load(made(part), tmp_path / "adapter")
    assert torch.equal(call(fresh), after)
    lt.merge(fresh)
    assert torch.allclose(call(fresh), after, rtol=1e-9, atol=1e-9)
    lt.detach(lt.unmerge(fresh))
    assert torch.equal(call(fresh), before)


@pytest.mark.parametrize("part", ["dit", "sd3", "unet", "autoencoder"])
def test_every_convolution_is_a_place_and_the_last_linear_layers_alone_are_left(part):
    model = made(part)
    convolutions = {f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions and {site.path for site in lt.select(model, "conv")} == convolutions
    inside = {path for path, m in model.named_modules() if isinstance(m, nn.Linear) and "block" in path}
    assert inside <= {site.path for site in lt.select(model, "all-linear")}
