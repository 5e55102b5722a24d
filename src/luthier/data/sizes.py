"""How long encoded rows are, all of them at once."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Feature = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Figures of the features of a set, an array for each [features]."""

    row: np.ndarray
    """The number of the row that a feature is of."""
    length: np.ndarray
    """Tokens that the model sees: of the input, and of an answer that is a text of its own; 0 for other inputs."""
    work: np.ndarray
    """What activations grow with: tokens or samples, 1 where all rows have one size."""
    width: np.ndarray
    """Columns in a batch: tokens or samples of the feature, or of the longest beside it."""
    learned: np.ndarray
    """Tokens in the loss; 0 where the label is not a token."""
    cut: np.ndarray
    """Whether tokens were cut off."""

    @property
    def rows(self) -> int:
        """How many rows the features are of; those of one row follow each other."""
        return int((self.row[1:] != self.row[:-1]).sum()) + bool(len(self.row))


class Measured(Sequence[Feature]):
    """Features whose sizes are known without reading them."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """Returns the sizes of all of them."""

    @abstractmethod
    def mapped(self, change: Callable[[Feature], Feature]) -> Measured:
        """Returns the same features, each changed when it is read; their sizes stay."""

    @abstractmethod
    def notes(self) -> tuple[Counter[str], Counter[str]]:
        """Returns what the user should hear of them: each note with (the turns, the rows) that it is true of."""


def each_with(features: Sequence[Feature], more: Callable[[Feature], Feature]) -> Sequence[Feature]:
    """Returns the features with `more` of each beside it, or in its stead."""
    if isinstance(features, Measured):
        return features.mapped(lambda feature: feature | more(feature))
    return [feature | more(feature) for feature in features]


def sizes_of(features: Sequence[Feature]) -> Sizes:
    """Returns the sizes of features, which are known or looked at one by one."""
    if isinstance(features, Measured):
        return features.sizes()
    import numpy as np

    found = np.array([_figures(feature) for feature in features], dtype=np.int64).reshape(-1, 6)
    return Sizes(*found.T)


def _figures(feature: Feature) -> tuple[int, ...]:
    labels = feature["labels"]
    answer = labels if isinstance(labels, list) else []
    ids, samples = feature.get("input_ids", ()), feature.get("input_values", ())
    own = len(ids) + (len(answer) if len(answer) != len(ids) else 0)
    work = max(len(feature.get("input_ids", samples)), len(answer), 1)
    width = max((len(feature[name]) for name in ("input_ids", "input_values") if name in feature), default=0)
    learned = sum(label != -100 for label in answer)
    also = [_figures(each) for each in feature.get("also", ())]
    own, work, learned = (mine + sum(each[i] for each in also) for mine, i in ((own, 1), (work, 2), (learned, 4)))
    return feature["row"], own, work, max([width, *(each[3] for each in also)]), learned, bool(feature.get("truncated"))
