"""A smallest picture, with the tokens that stand for it, for a model that reads pictures beside text."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def language_config(config: Any) -> Any:
    """Returns the configuration of the language model inside one that also sees or hears; None for any other model."""
    inner = getattr(config, "text_config", None)
    parts = [getattr(config, f"{each}_config", None) for each in ("vision", "audio")]
    return inner if inner is not None and any(part is not None for part in parts) else None


def picture_token(config: Any) -> int | None:
    """The token in whose places a model puts the features of a picture; None for a model that does not work so."""
    if config is None or language_config(config) is None or getattr(config, "vision_config", None) is None:
        return None
    token = getattr(config, "image_token_id", None)
    return getattr(config, "image_token_index", None) if token is None else token


def picture_inputs(model: Any, words: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """`input_ids` with the places of a picture, and the picture; the model itself says how many places it takes.

    Empty where the model wants more than a picture: text alone is then all that can be tried.
    """
    config, taken = model.config, inspect.signature(type(model).forward).parameters
    if getattr(type(model), "get_image_features", None) is None:
        return {}
    makers = (_patches,) if "image_grid_thw" in taken else (_picture, _pictures)
    made, count = next(filter(None, (_seen(model, maker, dtype) for maker in makers)), ({}, 0))
    if not made:
        return {}
    token = picture_token(config)
    assert token is not None  # or nothing of a picture is asked for
    ids = torch.cat([words[:, :1], torch.full((1, count), token, dtype=words.dtype), words], dim=1)
    if "mm_token_type_ids" in taken:
        made["mm_token_type_ids"] = (ids == token).int()
    return {"input_ids": ids, **made}


def _seen(model: Any, maker: Callable[..., dict[str, Tensor]], dtype: torch.dtype) -> tuple[dict, int] | None:
    """(a picture, how many tokens stand for it); None where the model does not take it so."""
    try:
        made = maker(model.config.vision_config, dtype)
        with torch.no_grad():
            return made, _places(model.get_image_features(**made), language_config(model.config).hidden_size)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
        return None


def _places(found: Any, width: int) -> int:
    """Rows of the features that stand in for tokens."""
    found = getattr(found, "pooler_output", found)
    parts = list(found) if isinstance(found, list | tuple) else [found]
    return sum(part.numel() for part in parts) // width


def _picture(vision: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return {"pixel_values": _wave(1, getattr(vision, "num_channels", None) or 3, height, width, dtype=dtype)}


def _pictures(vision: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """One picture of several that a row may have, as Idefics' and SmolVLM's processors do."""
    return {key: each[None] for key, each in _picture(vision, dtype).items()}


def _patches(vision: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """A picture cut up as Qwen's processors do: one row for each patch, and the grid [time, height, width]."""
    merge, frames = getattr(vision, "spatial_merge_size", 2), getattr(vision, "temporal_patch_size", 1)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", None) or 3
    grid = (1, 2 * merge, 2 * merge)
    rows = _wave(math.prod(grid), channels * frames * vision.patch_size**2, dtype=dtype)
    return {"pixel_values": rows, "image_grid_thw": torch.tensor([grid])}


def _wave(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(0, 9, math.prod(shape)).sin().reshape(shape).to(dtype)


def language_path(model: nn.Module) -> str | None:
    """Returns the path of the language model inside a model that also sees or hears; None for any other model."""
    config = getattr(model, "config", None)
    if config is None or language_config(config) is None or not getattr(model, "can_generate", bool)():
        return None
    wanted = language_config(config).model_type
    named = ((path, getattr(module, "config", None)) for path, module in model.named_modules() if path)
    return next((path for path, own in named if getattr(own, "model_type", None) == wanted), None)


def sites_by_part(model: nn.Module, paths: Iterable[str]) -> str | None:
    """Returns how many of `paths` lie in the language model and how many in each part that sees or hears.

    None for a model without such parts. A name such as q_proj may stand for layers of several.
    """
    language = language_path(model)
    if language is None:
        return None
    above, _, own = language.rpartition(".")
    counts = Counter(path.removeprefix(f"{above}.").split(".")[0] for path in paths)
    told = ", ".join(f"{count:,} in {part}" for part, count in counts.items())
    one = own if own in counts else next(iter(counts), own)
    return told if len(counts) < 2 else f"{told}; '(…) & {one}.*' as where takes those of {one} alone"
