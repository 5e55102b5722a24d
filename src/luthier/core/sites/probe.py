"""A smallest input for any model, to see what a forward pass reaches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.sites.structure import Attachment


def dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    """One short row for every kind of input that the model's forward names, from its configuration."""
    config = getattr(model, "config", None)
    parameter = next(model.parameters())
    taken = inspect.signature(model.forward).parameters
    with torch.device(parameter.device):
        made = {name: make(config, parameter.dtype) for name, make in MAKERS.items() if name in taken}
    if "input_ids" in made and "inputs_embeds" in made:
        del made["inputs_embeds"]
    if not made:
        raise LuthierError(f"no way to run {type(model).__name__} is known: pass check=False.")
    return made


def _part(config: Any, key: str) -> Any:
    """The first of a configuration and its parts (vision, audio, …) that has `key`."""
    parts = [config, *(v for v in vars(config).values() if type(v).__name__.endswith("Config"))]
    return next((getattr(part, key) for part in parts if getattr(part, key, None) is not None), None)


def _ids(config: Any, dtype: torch.dtype) -> Tensor:
    last = (_part(config, "vocab_size") or 8) - 1
    return torch.arange(1, 7).clamp(max=last)[None]


def _image(config: Any, dtype: torch.dtype) -> Tensor:
    size = _part(config, "image_size") or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return _wave(1, _part(config, "num_channels") or 3, height, width, dtype=dtype)


def _speech(config: Any, dtype: torch.dtype) -> Tensor:
    steps = 2 * (_part(config, "max_source_positions") or 50)
    return _wave(1, _part(config, "num_mel_bins") or 80, steps, dtype=dtype)


def _audio(config: Any, dtype: torch.dtype) -> Tensor:
    bins = _part(config, "num_mel_bins")
    if bins and _part(config, "max_length"):
        return _wave(1, _part(config, "max_length"), bins, dtype=dtype)
    return _wave(1, 4000, dtype=dtype)


def _wave(*shape: int, dtype: torch.dtype) -> Tensor:
    """A fixed, uneven input: no generator is disturbed."""
    size = int(torch.Size(shape).numel())
    return torch.linspace(0, 9, size).sin().reshape(shape).to(dtype)


MAKERS: dict[str, Callable[[Any, torch.dtype], Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _image,
    "input_features": _speech,
    "input_values": _audio,
    "decoder_input_ids": _ids,
}


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode and no gradients, every module's own flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in reversed(flags):  # attachments after what they hold
            if isinstance(module, Attachment):
                module.train(training)
            else:
                module.training = training


def run_once(model: nn.Module) -> None:
    """One small pass."""
    with evaluating(model):
        model(**dummy_inputs(model))
