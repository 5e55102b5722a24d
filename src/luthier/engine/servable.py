"""Checks what can be served: models whose rows can share a batch, adapters that leave other rows unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from luthier.core.adapters.control import rows
from luthier.core.errors import LuthierError
from luthier.core.numerics.wide import exact
from luthier.core.sites.caches import cache_argument
from luthier.core.sites.probe import dummy_inputs


def check_servable(model: Any) -> None:
    """Raises for a model that generates no text, or that has no key-value cache by token."""
    what = f"{type(model).__name__} cannot be served"
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise LuthierError(f"{what}: it does not generate text.")
    if model.config.is_encoder_decoder:
        raise LuthierError(f"{what}: it is an encoder-decoder, and only decoders are batched row by row.")
    alone = " rows that join and leave a batch need keys and values for every token. Use `luthier generate`."
    if model._is_stateful:
        raise LuthierError(f"{what}: it keeps a recurrent state;{alone}")
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if strange := sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer}):
        raise LuthierError(f"{what}: its cache has layers of type {', '.join(strange)};{alone}")
    cache, ids = DynamicCache(), dummy_inputs(model)["input_ids"]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **cache_argument(model, cache))
    if not cache.layers or not all(_written(layer, ids.shape) for layer in cache.layers):
        raise LuthierError(f"{what}: it does not write to transformers' cache as it is handed one;{alone}")


def _written(layer: object, shape: torch.Size) -> bool:
    return isinstance(layer, DynamicLayer) and layer.keys is not None and layer.keys.shape[::2] == shape


class Trial:
    """A small mixed pass, to see that an adapter acts on its own rows alone."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids = dummy_inputs(model)["input_ids"].expand(3, -1)
        self._base = self._logits()

    @torch.no_grad()
    def _logits(self) -> Tensor:
        return exact(self._model(input_ids=self._ids, use_cache=False).logits[:, -1])

    def __call__(self, name: str) -> None:
        """Raises if rows of the base change beside a row of the adapter `name`.

        Rounding is not a change, nor is what rounding does to a router: a leak is of the size of the adapter's effect.
        """
        with rows(self._model, [None, name, None]):
            changes = (self._logits() - self._base).abs().amax(-1)
        noise = float(self._base.abs().max()) * torch.finfo(self._model.dtype).eps ** 0.5
        leak, effect = float(changes[::2].max()), float(changes[1])
        if not leak <= max(noise, effect / 4):
            raise LuthierError(
                f"adapter {name!r} cannot be served beside others: it changes the logits of the base's rows by "
                f"{leak:.2g} (its own by {effect:.2g}). Merge it, and serve the merged model."
            )
