"""Smallest inputs for any model, from its configuration: the first of several that its forward pass takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.pictures import picture_inputs, picture_token

Inputs = dict[str, Tensor]
Maker = Callable[[Any, torch.dtype], Tensor]


def dummy_inputs(model: nn.Module) -> Inputs:
    """One short row for every kind of input that the model's forward names, from its configuration.

    Where that leaves a choice (frames before or behind their features, a model of text and images that also takes text
    alone), the first that runs. Raises `NotKnown` where none does.
    """
    tries = list(_candidates(model))
    if not tries:
        raise NotKnown(model)
    return tries[0] if len(tries) == 1 else _running(model, tries)


def _running(model: nn.Module, tries: list[Inputs]) -> Inputs:
    first: Exception | None = None
    for given in tries:
        try:
            with torch.no_grad():
                model(**given)
            return given
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model says to inputs that do not fit it
            first = first or error
    raise NotKnown(model, first) from first


class NotKnown(LuthierError):
    """No input is known that a model runs on."""

    def __init__(self, model: nn.Module, error: Exception | None = None) -> None:
        reason = "its forward pass takes none of them" if error is None else f"{type(error).__name__}: {error}"
        super().__init__(
            f"{type(model).__name__} does not run on inputs made up from its configuration "
            f"({reason.splitlines()[0][:200]})."
        )


def _candidates(model: nn.Module) -> Iterator[Inputs]:
    """Inputs to try, the fullest first."""
    config, parameter = getattr(model, "config", None), next(model.parameters())
    taken = inspect.signature(model.forward).parameters
    with torch.device(parameter.device):
        made = {
            name: [each(config, parameter.dtype) for each in makers] for name, makers in MAKERS.items() if name in taken
        }
    if not made:
        return
    if "input_ids" in made and picture_token(config) is not None:  # a picture comes with its tokens, or not at all
        text = {name: found[0] for name, found in made.items() if name not in SEEN}
        yield text | picture_inputs(model, text["input_ids"], parameter.dtype)
        yield text
        return
    for index in range(max(map(len, made.values()))):
        yield {name: found[min(index, len(found) - 1)] for name, found in made.items()}
    if "input_ids" in made and len(made) > 1 and set(made) & set(SEEN):
        yield {name: found[0] for name, found in made.items() if name not in SEEN}
        yield {name: found[0] for name, found in made.items() if name != "input_ids"}


def _part(config: Any, *keys: str) -> Any:
    """The first of a configuration and its parts (vision, audio, …) that has one of `keys`."""
    for key in keys:
        parts = [config, *(v for v in vars(config).values() if type(v).__name__.endswith("Config"))]
        found = next((getattr(part, key) for part in parts if getattr(part, key, None) is not None), None)
        if found is not None:
            return found
    return None


def _ids(config: Any, dtype: torch.dtype) -> Tensor:
    last = (_part(config, "vocab_size") or 8) - 1
    return torch.arange(1, 7).clamp(max=last)[None]


def _size(config: Any) -> tuple[int, int]:
    size = _part(config, "image_size") or 64  # a network of convolutions takes any
    return (size, size) if isinstance(size, int) else tuple(size)[:2]  # type: ignore[return-value]


def _image(config: Any, dtype: torch.dtype) -> Tensor:
    return _wave(1, _part(config, "num_channels", "in_channels", "in_chans") or 3, *_size(config), dtype=dtype)


def _images(config: Any, dtype: torch.dtype) -> Tensor:
    """One image of several that a row may have."""
    return _image(config, dtype)[None]


def _features(config: Any) -> int:
    return _part(config, *FEATURES) or 80


def _speech(config: Any, dtype: torch.dtype) -> Tensor:
    steps = 2 * (_part(config, "max_source_positions") or 50)
    return _wave(1, _features(config), steps, dtype=dtype)


def _frames(config: Any, dtype: torch.dtype) -> Tensor:
    """Frames of features, time first."""
    return _wave(1, 64, _features(config), dtype=dtype)


def _audio(config: Any, dtype: torch.dtype) -> Tensor:
    bins = _part(config, "num_mel_bins")
    if bins and _part(config, "max_length"):
        return _wave(1, _part(config, "max_length"), bins, dtype=dtype)
    return _wave(1, 4000, dtype=dtype)


def _wave(*shape: int, dtype: torch.dtype) -> Tensor:
    """A fixed, uneven input: no generator is disturbed."""
    size = int(torch.Size(shape).numel())
    return torch.linspace(0, 9, size).sin().reshape(shape).to(dtype)


FEATURES = (
    "feature_projection_input_dim",
    "num_mel_bins",
    "input_feat_per_channel",
    "input_feat_size",
    "feature_size",
    "input_dim",
)
"""What configurations call the features of a frame."""
SEEN = ("pixel_values", "input_features", "input_values")
"""What a model of text may also be given."""
MAKERS: dict[str, tuple[Maker, ...]] = {
    "input_ids": (_ids,),
    "pixel_values": (_image, _images),
    "input_features": (_speech, _frames),
    "input_values": (_audio,),
    "decoder_input_ids": (_ids,),
}
