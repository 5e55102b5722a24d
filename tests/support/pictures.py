"""Small UNets of Stable Diffusion and SDXL: by their layers' names and shapes alone, and as diffusers runs them."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from support.recorded import FOLDERS

UNET, SDXL = "diffusion_unet.json", "sdxl_unet.json"
"""Files with the configuration of a UNet and the shapes of its layers."""


class UNet2DConditionModel(nn.Module):
    """The layers of a recorded UNet by their names, and no way through them."""

    def __init__(self, kind: str = UNET) -> None:
        super().__init__()
        for path, (layer_kind, shape) in told(kind)["modules"].items():
            owner: nn.Module = self
            *parents, name = path.split(".")
            for part in parents:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(name, _layer(layer_kind, shape))


def told(kind: str) -> dict[str, Any]:
    return json.loads((FOLDERS / kind).read_text())


def _layer(kind: str, shape: list[int]) -> nn.Module:
    if kind == "Linear":
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2]) if kind == "Conv2d" else nn.LayerNorm(shape[0])


def named_unet(kind: str) -> UNet2DConditionModel:
    """A UNet without a forward pass, with numbers that follow from its names."""
    return filled(UNet2DConditionModel(kind))


def values(count: int, turn: int) -> torch.Tensor:
    """As in record_diffusion.py."""
    steps = torch.arange(count, dtype=torch.float64) * 0.618033988749895 + turn * 0.7548776662466927
    return ((steps % 1) - 0.5).float()


def filled(model: Any) -> Any:
    for turn, (_, parameter) in enumerate(sorted(model.named_parameters())):
        spread = 0.3 * values(parameter.numel(), turn).view_as(parameter)
        parameter.data.copy_(spread if parameter.dim() > 1 else 1 + spread)
    return model.eval()


def unet(kind: str) -> Any:
    """diffusers' own model."""
    import diffusers

    return filled(diffusers.UNet2DConditionModel(**told(kind)["config"]))


def pipeline(kind: str) -> Any:
    """A pipeline of diffusers around `unet`, without a tokenizer."""
    import diffusers

    more: dict[str, Any] = {"vae": diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4)}
    more |= {"scheduler": diffusers.DDIMScheduler(), "tokenizer": None, "feature_extractor": None}
    if kind == SDXL:
        return diffusers.StableDiffusionXLPipeline(
            **{"text_encoder": None, "text_encoder_2": None, "tokenizer_2": None, "unet": unet(kind)},
            **more,
            add_watermarker=False,
        )
    return diffusers.StableDiffusionPipeline(
        text_encoder=None, unet=unet(kind), safety_checker=None, requires_safety_checker=False, **more
    )


def answer(model: Any, kind: str) -> torch.Tensor:
    """What a UNet answers to a fixed input."""
    config = told(kind)["config"]
    width, size = config["cross_attention_dim"], config["sample_size"]
    sample, context = values(8 * size * size, 1).view(2, 4, size, size), values(20 * width, 2).view(2, 10, width)
    more = {"text_embeds": values(2 * 16, 3).view(2, 16), "time_ids": values(2 * 6, 4).view(2, 6)}
    with torch.no_grad():
        return model(sample, 7, context, added_cond_kwargs=more if kind == SDXL else None).sample
