"""What the files of a pipeline are to hold: factors of linear layers and convolutions, all of one rank."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.sites.structure import unfolded_features
from luthier.interop.formats._layers import Factoring, Layer, filled

IN_TEXT = re.compile(r"(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]))")


def contents(layers: Sequence[Layer], factoring: Factoring) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns {path: (B, A)}, those of convolutions in four dimensions; all are of the largest rank.

    Lower ranks are filled up, which changes nothing: diffusers before 0.39 takes another strength for layers whose
    rank is not the most frequent one, and diffusers 0.42 mixes up the alphas of text encoders where they differ.
    """
    found = {layer.path: (layer.module, *_factors(layer, factoring)) for layer in layers}
    rank = max(len(a) for _, _, a in found.values())
    return {path: _shaped(module, *filled(b, a, rank)) for path, (module, b, a) in found.items()}


def in_text_encoder(path: str) -> str:
    """The name of a text encoder's layer in files, which have `text_model.` in front whatever transformers has."""
    match = IN_TEXT.fullmatch(path)
    if match is None:
        raise LuthierError(
            f"{path} is adapted; files of pipelines have the linear layers in the blocks of a text encoder alone. "
            "Export it as peft (--to peft) instead."
        )
    return f"text_model.{match[1]}"


def _factors(layer: Layer, factoring: Factoring) -> tuple[Tensor, Tensor]:
    if layer.kinds == {"param"} and unfolded_features(layer.module):
        return factoring.fit(layer, _of_convolution(layer))
    return factoring(layer)


def _of_convolution(layer: Layer) -> Delta:
    """The change of a kernel as a matrix [d_out, channels · kernel]."""
    module, tuner = layer.module, layer.tuners[0]
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if len(layer.tuners) > 1 or tuner.site.path != f"{layer.path}.weight":
        raise LuthierError(f"{layer.path} is adapted in more than its weight; export it merged instead (--to merged).")
    if module.groups != 1 or set(module.dilation) != {1}:
        raise LuthierError(
            f"{layer.path} is a convolution of groups or with dilation, which LoRA files have no place for."
        )
    weight = module.weight.detach().float()
    factors = tuner.factors(torch.float32, weight)
    if factors is not None:
        return Delta.low_rank(*factors)
    return Delta.dense_of((tuner.weight(weight) - weight).flatten(1))


def _shaped(module: nn.Module, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Factors as the library keeps them: of a convolution, one of its own kernel and one of 1 x 1."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        ones = [1] * len(module.kernel_size)
        return b.view(*b.shape, *ones), a.view(len(a), module.in_channels, *module.kernel_size)
    return b, a
