"""Adapters that are drawn from an adapter that is a distribution, and the interval that they give a probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.numerics.draws import draw_of
from luthier.core.storage.folder import read_adapter
from luthier.core.storage.spread import read_spread

ENDS = (0.025, 0.975)
"""The quantiles over drawn adapters that bound an interval."""


SAMPLES = 16
"""Adapters that are drawn unless told otherwise."""


@dataclass(frozen=True)
class Drawn:
    """Adapters around the one that is on a model, always the same ones."""

    spread: Mapping[str, Tensor]
    """The standard deviation of each tensor, by its name in the model."""
    count: int

    def means(self, model: Any, probabilities: Callable[[], Sequence[float]]) -> list[dict[str, float]]:
        """Returns the `probability` of each row, meaned over the adapters, with `probability_low` and
        `probability_high`, its 2.5% and 97.5% quantiles."""
        found = []
        for number in range(self.count):
            with self._on(model, number):
                found.append(probabilities())
        held = np.asarray(found)
        lows, highs = np.quantile(held, ENDS, axis=0)
        return [{"probability": float(mean), "probability_low": float(low), "probability_high": float(high)}
                for mean, low, high in zip(held.mean(0), lows, highs, strict=True)]  # fmt: skip

    @contextmanager
    def _on(self, model: Any, number: int) -> Iterator[None]:
        own = {key: p for key, p in tensors(model).items() if key in self.spread}
        before, draw = {key: p.detach().clone() for key, p in own.items()}, draw_of(f"adapter {number}")
        with torch.no_grad():
            try:
                for key, p in own.items():
                    p.add_(self.spread[key].to(p) * torch.randn(p.shape, generator=draw).to(p))
                yield
            finally:
                for key, p in own.items():
                    p.copy_(before[key])


def drawn_of(adapter: str | Path, model: Any, samples: int | None = None) -> Drawn | None:
    """Returns so many adapters around a saved one that is on the model, 16 unless told otherwise.

    None where it is not a distribution, or for 0 samples. Raises `LuthierError` for samples of an adapter that is none.
    """
    if samples is not None and (samples < 0 or samples == 1):
        raise LuthierError(f"samples is {samples}; an interval takes at least 2, and 0 leaves it out.")
    folder, spec = read_adapter(adapter)
    spread = read_spread(folder, model, str(spec["name"]))
    if spread is None and samples:
        raise LuthierError(
            f"{adapter} is one adapter and not a distribution, so there is nothing to draw; leave samples out, or "
            "train it as one (luthier meta --by abmll)."
        )
    return None if spread is None or samples == 0 else Drawn(spread, samples or SAMPLES)
