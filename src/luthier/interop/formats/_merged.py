"""The whole model with an adapter folded in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.core.adapters.merge import merge, unmerge
from luthier.core.errors import LuthierError
from luthier.core.sites.probe import dummy_inputs, eval_mode


@contextmanager
def merged(model: nn.Module, name: str | None = None) -> Iterator[dict[str, Tensor]]:
    """The tensors of a model with its adapters (or the one named) merged, under the base's own names; the weights
    are the base's very own again afterwards."""
    merge(model, name)
    try:
        yield {key: tensor for key, tensor in model.state_dict().items() if ".adapters." not in f".{key}"}
    finally:
        unmerge(model)


def check_whole(model: nn.Module, processor: Any, what: str) -> None:
    """Raises for a base or a processor of which no folder of a whole model can be made."""
    if not isinstance(model, PreTrainedModel):
        raise LuthierError(f"{type(model).__name__} is not a transformers model, so it has no folder to write.")
    if processor is None:
        raise LuthierError(f"{what} travels with its tokenizer; pass processor=….")


def save_merged(model: Any, processor: Any, folder: Path, name: str | None = None) -> None:
    """Saves what is attached to `model` (or the one named) as a model to which nothing had ever been attached."""
    with merged(model, name) as tensors:
        save_whole(model, processor, folder, tensors)


def save_whole(model: Any, processor: Any, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Saves a model, or these tensors in place of its own, with its processor, in as many files as its base has."""
    from luthier.core.storage.one_by_one import save_model
    from luthier.models.older import for_older_readers
    from luthier.models.quiet import quiet
    from luthier.models.seeing import save_processor

    with quiet(), _generation_as_it_is(model, folder):
        save_model(model, folder, tensors)
        save_processor(processor, folder)
        for_older_readers(folder)


@contextmanager
def _generation_as_it_is(model: Any, folder: Path) -> Iterator[None]:
    """Saves the generation configuration unjudged: transformers loads one with settings that contradict each other (a
    temperature without sampling, as older checkpoints have) and then refuses to save the model."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    if own is None:
        yield
        return
    model.generation_config = GenerationConfig()
    try:
        yield
        own.to_json_file(folder / "generation_config.json")
    finally:
        model.generation_config = own


def probe(model: Any) -> Tensor:
    """Returns the first output of a model on a fixed small input, in float32."""
    with eval_mode(model):
        return model(**dummy_inputs(model))[0].float()


def difference(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Returns (largest absolute difference, largest absolute value) of two outputs."""
    return float((first - second).abs().max()), float(first.abs().max())
