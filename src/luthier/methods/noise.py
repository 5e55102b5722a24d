"""NEFTune: noise on the embeddings while training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from luthier.core.sites.entering import whole_passes
from luthier.core.sites.structure import unwrapped
from luthier.core.sites.tables import token_tables


@contextmanager
def noisy(model: nn.Module, size: float, batch: Any) -> Iterator[None]:
    """While the context lasts and the model trains, a row of L tokens of width d reads embeddings with uniform noise
    in ±size/√(L d). L leaves padding out, as the authors' code does (transformers' own counts it)."""
    inner: Any = unwrapped(model)
    if not (size and model.training):
        yield
        return

    def add(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        mask = batch.get("attention_mask")  # an encoder's; its decoder's rows are told from it by their width
        seen = mask if mask is not None and mask.shape == args[0].shape else torch.ones_like(args[0])
        reach = size / (seen.sum(1) * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * reach[:, None, None].to(output.dtype)

    hooks = [table.register_forward_hook(add) for table in token_tables(inner)]
    try:
        with whole_passes():  # noise is drawn anew in each
            yield
    finally:
        for hook in hooks:
            hook.remove()
