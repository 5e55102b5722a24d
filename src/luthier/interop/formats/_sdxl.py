"""UNet layers as the original code of Stable Diffusion calls them, which sd-scripts keeps for SDXL."""

from __future__ import annotations

import re

from torch import nn

OUTSIDE = {
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"},
}
RESNET = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"},
    **{"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"},
}
MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}
IN_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?")
IN_MIDDLE = re.compile(r"mid_block\.((?:resnets|attentions)\.\d+)(?:\.(.+))?")


def original_names(model: nn.Module) -> dict[str, str]:
    """`{path in diffusers: name in the original code}` of a UNet's layers; empty for other models."""
    paths = [path for path, _ in model.named_modules()]
    layers = sum(re.fullmatch(r"down_blocks\.0\.resnets\.\d+", path) is not None for path in paths)
    attending = {path.partition(".attentions.")[0] for path in paths if ".attentions." in path}
    found = {path: _original(path, layers, attending) for path in paths} if layers else {}
    return {path: name for path, name in found.items() if name is not None}


def _original(path: str, layers: int, attending: set[str]) -> str | None:
    if path in OUTSIDE:
        return OUTSIDE[path]
    if (match := IN_MIDDLE.fullmatch(path)) and match[1] in MIDDLE:
        return _joined(MIDDLE[match[1]], _inner(match[1], match[2]))
    if match := IN_BLOCK.fullmatch(path):
        side, block, kind, turn = match[1], int(match[2]), match[3], int(match[4])
        start = (layers + 1) * block
        if kind == "downsamplers":
            return f"input_blocks.{start + layers + 1}.0.op" if match[5] == "conv" else None
        if kind == "upsamplers":
            behind = 2 if f"up_blocks.{block}" in attending else 1
            return _joined(f"output_blocks.{start + layers}.{behind}", match[5])
        name = f"input_blocks.{start + turn + 1}" if side == "down" else f"output_blocks.{start + turn}"
        return _joined(f"{name}.{int(kind == 'attentions')}", _inner(kind, match[5]))
    return None


def _inner(kind: str, rest: str | None) -> str | None:
    """What a layer inside a block is called; attentions have the same names."""
    return RESNET.get(rest, rest) if rest and kind.startswith("resnets") else rest


def _joined(name: str, rest: str | None) -> str:
    return f"{name}.{rest}" if rest else name
