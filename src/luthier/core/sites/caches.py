"""The cache of keys and values among a model's arguments: `cache` since transformers 5.24, `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")
"""What a model calls its cache, the newest name first; a release that has the first takes the second too."""


def cache_in(given: Mapping[str, Any]) -> Any:
    """Returns the cache in the arguments of a pass, or in what it returned; None where there is none."""
    return next((cache for name in NAMES if (cache := given.get(name)) is not None), None)


def cache_name(model: nn.Module) -> str | None:
    """Returns the argument in which a model takes its cache; None for a model that takes none."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in takes), None)


def cache_argument(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Returns the argument that hands a model its cache, under the name that it has there."""
    return {cache_name(model) or NAMES[-1]: cache}
