"""SAM2's Hiera image encoder (Meta): the published .ort file of ONNX Runtime, renamed to the Hugging Face class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.models.convert._ort import tensors
from luthier.models.convert._save import filled
from luthier.models.quiet import quiet

_NAMES = [
    (r"^(model\.|/)image_encoder[./]", ""),
    (r"/Transpose_output_0$", ".weight"),
    (r"/", "."),
    (r"^trunk\.", "backbone."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"^(neck\.convs\.\d)\.conv\.", r"\1."),
]
_POSITIONS = "/image_encoder/trunk/Transpose_output_0"
"""The position embedding of 1024 x 1024 pixels, [1, 96, 256, 256]: of two tables, summed when the file was made."""
_SIZE = 256
"""Pixels of the side that pictures are brought to; any multiple of 32 works."""


def convert(weights: Path, target: Path) -> None:
    """Saves `Sam2VisionModel` and an image processor with SAM2's mean and deviation.

    Matrices stand transposed in the file. The two tables of positions are solved for from their sum (`split`), so that
    pictures of other sizes than the file's 1024 pixels are embedded as SAM2 embeds them.
    """
    import torch
    from transformers import Sam2VisionConfig, Sam2VisionModel, ViTImageProcessor

    held = {name: torch.from_numpy(array) for name, array in tensors(weights).items()}
    config = Sam2VisionConfig()
    with torch.device("meta"):
        wanted = {key: t.shape for key, t in Sam2VisionModel(config).state_dict().items()}
    state = _state(held, wanted)
    backbone: Any = config.backbone_config
    size = backbone.window_positional_embedding_background_size[0]
    whole = split(held[_POSITIONS], size, backbone.window_size_per_stage[0])
    state |= dict(zip(("backbone.pos_embed", "backbone.pos_embed_window"), whole, strict=True))
    with quiet():
        filled(Sam2VisionModel, config, state).save_pretrained(target)
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        size = {"height": _SIZE, "width": _SIZE}
        ViTImageProcessor(size=size, image_mean=mean, image_std=deviation).save_pretrained(target)


def _state(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names of the Hugging Face class; what it does not have is left."""
    found = {}
    for name, tensor in held.items():
        key = name
        for pattern, there in _NAMES:
            key = re.sub(pattern, there, key)
        if key in wanted:
            found[key] = (tensor.mT if name.endswith("/Transpose_output_0") else tensor).contiguous()
    return found


def split(whole: Any, size: int, window: int) -> tuple[Any, Any]:
    """Returns (p [1, c, size, size], w [1, c, window, window]) with bicubic(p) + tile(w) = whole [1, c, h, h].

    Least squares in float64. A constant can stand in either table; the least of both is taken, which is the same
    embedding at every size. Raises `LuthierError` where no two such tables give the sum.
    """
    import torch

    _, channels, h, _ = whole.shape
    one = torch.eye(size, dtype=torch.float64)[None, :, :, None]  # the rows' interpolation, as columns are alike
    rows = torch.nn.functional.interpolate(one, size=(h, 1), mode="bicubic")[0, :, :, 0].mT  # [h, size]
    tile = torch.eye(window, dtype=torch.float64).repeat(h // window, 1)  # [h, window]
    left = torch.einsum("ia,jb->ijab", rows, rows).reshape(h * h, -1)
    right = torch.einsum("ia,jb->ijab", tile, tile).reshape(h * h, -1)
    system = torch.cat([left, right], 1)
    flat = whole.double().reshape(channels, h * h).mT
    solved = torch.linalg.pinv(system.mT @ system, hermitian=True) @ (system.mT @ flat)
    if (system @ solved - flat).abs().max() > 1e-4:
        raise LuthierError("the position embedding is not the sum of two tables: this is not the file expected.")
    p, w = solved.mT.float().split([size * size, window * window], 1)
    return p.reshape(1, channels, size, size).contiguous(), w.reshape(1, channels, window, window).contiguous()
