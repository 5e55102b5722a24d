"""The tables that tokens are looked up in."""

from __future__ import annotations

from typing import Any

from torch import nn


def token_tables(model: Any) -> list[nn.Module]:
    """Returns the model's input embeddings, as many modules as hold them.

    An encoder and a decoder that share one table have a module of the same weight each since transformers 5, and the
    model's own is then called by neither.
    """
    table: Any = model.get_input_embeddings()
    weight = getattr(table, "weight", None)
    tied: list[nn.Module] = [
        each for each in model.modules() if isinstance(each, nn.Embedding) and each.weight is weight
    ]
    return tied if table in tied else [table, *tied]
