"""The contract of a sampler: what decodes answers from the model under training, in the same process.

Training stands below the serving engine, which is the sampler there is; so it asks this contract for one.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ENGINE = "luthier.serving.engine.sampler"
"""The module whose `Sampler` is the serving engine's."""


@dataclass(frozen=True)
class Ask:
    """A prompt to answer once."""

    prompt: tuple[int, ...]
    """Token ids."""
    seed: int
    """Decides the draws of this answer, whatever else is decoded beside it."""


@dataclass(frozen=True)
class Drawn:
    """A sampled answer."""

    ids: tuple[int, ...]
    """Its tokens, the one that ended it included."""
    text: str
    """Without what ended it."""
    finish: str
    """`stop`, or `length` where it hit the limit."""


class Sampler(Protocol):
    """Samples answers with an adapter that is attached to the model, whose tensors are read where they are."""

    def __call__(self, asks: Sequence[Ask], max_tokens: int, temperature: float, top_p: float) -> list[Drawn]:
        """Returns an answer to each, in their order; the model's modes and the random state are left as they were."""
        ...


def sampler_of(model: Any, tokenizer: Any, adapter: str) -> Sampler:
    """Returns the serving engine's sampler. Raises `LuthierError` for a model that it cannot decode."""
    return importlib.import_module(ENGINE).EngineSampler(model, tokenizer, adapter)
