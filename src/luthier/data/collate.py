"""Features to a batch: padding, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from luthier.core.errors import LuthierError
from luthier.data.labels import CLASSES, END
from luthier.data.options import IGNORED
from luthier.data.pictures import NAMES, PICTURES, filled, opened
from luthier.data.told import TOLD
from luthier.models.seeing import Eyes, eyes_of

Side = Literal["left", "right"]
PLAIN = ("row", "truncated", "also", TOLD, PICTURES)
"""Features that are no tensor."""


@dataclass(frozen=True)
class Collator:
    """Features of one task -> `{name: tensor}`, and `"rows"`, the list of row numbers.

    Sequences are padded to the longest (up to a multiple of `pad_to_multiple_of`): `input_ids`
    with `pad_token_id`, `labels` with -100, everything else with 0; pictures and spectrograms of
    one size are stacked. Sounds of different lengths get an `attention_mask`. Rows under `also` of a
    row stand behind it. Pictures of conversations are opened here, and `eyes` make the model's inputs of them.
    """

    pad_token_id: int = 0
    padding_side: Side = "right"
    pad_to_multiple_of: int | None = None
    eyes: Eyes | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        import numpy as np

        if not features:
            raise LuthierError("a batch needs at least one row.")
        features = [each for feature in features for each in (feature, *feature.get("also", ()))]
        features, pictures = _seen(features)
        names = [name for name in features[0] if name not in PLAIN]
        batch = _arguments({name: self._column(name, [f[name] for f in features]) for name in names})
        if pictures:
            batch |= self._looked(pictures)
        lengths = [len(f["input_values"]) for f in features if "input_values" in f and np.ndim(f["input_values"]) == 1]
        if lengths and "attention_mask" not in batch and min(lengths) < max(lengths):
            batch["attention_mask"] = self._column("attention_mask", [[1] * n for n in lengths])
        return {**batch, "rows": [f.get("row") for f in features]}

    def _looked(self, pictures: list[list[str]]) -> dict[str, Any]:
        """What the model reads of the rows' pictures; those of a row are opened together, for its bound is theirs."""
        if self.eyes is None:
            raise LuthierError("the batch has pictures, and nothing here makes inputs of them (collator_for does).")
        return self.eyes.inputs([picture for names in pictures for picture in opened(names)])

    def _column(self, name: str, values: list[Any]) -> Any:
        import numpy as np
        import torch

        first = values[0]
        if np.ndim(first) == 0:
            return torch.tensor(values)
        if np.ndim(first) == 1:
            width = self._width(max(map(len, values)))
            fill = {"input_ids": self.pad_token_id, "labels": IGNORED}.get(name, 0)
            values = [self._pad(np.asarray(value), width, fill) for value in values]
        return torch.from_numpy(np.stack(values))

    def _width(self, longest: int) -> int:
        step = self.pad_to_multiple_of or 1
        return -(-longest // step) * step

    def _pad(self, value: Any, width: int, fill: float) -> Any:
        import numpy as np

        gap = width - len(value)
        sides = (gap, 0) if self.padding_side == "left" else (0, gap)
        return np.pad(value, sides, constant_values=fill)


def _seen(features: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Features with the columns that tokens of pictures need (zeros in rows without any), and the pictures by row."""
    kept = [feature.get(PICTURES, {}) for feature in features]
    pictures = [each[NAMES] for each in kept if each]
    names = sorted({name for each in kept for name in each} - {NAMES})
    if not names:
        return features, pictures
    beside = [
        {name: filled(own.get(name, ()), len(feature["input_ids"])) for name in names}
        for feature, own in zip(features, kept, strict=True)
    ]
    return [feature | more for feature, more in zip(features, beside, strict=True)], pictures


def _arguments(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as models call its labels: several classes of a text are float, a place in it has two numbers."""
    if CLASSES in batch:
        batch["labels"] = batch.pop(CLASSES).float()
    if END in batch:
        batch |= {"start_positions": batch.pop("labels"), "end_positions": batch.pop(END)}
    return batch


def length_of(feature: dict[str, Any]) -> int:
    """Tokens or samples of a row, or of the longest beside it under `also`; 0 for pictures, which are of one size."""
    rows = (feature, *feature.get("also", ()))
    return max((len(row[name]) for row in rows for name in ("input_ids", "input_values") if name in row), default=0)


def collate(
    features: list[dict[str, Any]],
    pad_token_id: int,
    padding_side: Side = "right",
    pad_to_multiple_of: int | None = None,
) -> dict[str, Any]:
    """One batch by a `Collator` of these settings."""
    return Collator(pad_token_id, padding_side, pad_to_multiple_of)(features)


def collator_for(task: str, processor: Any, pad_to_multiple_of: int | None = None) -> Collator:
    """Returns the collator for training on `task` with this tokenizer, image processor or feature
    extractor.

    Padding is on the right: in training the side changes nothing for a causal model, and a
    decoder's labels have to begin at the start. A tokenizer without a padding token pads with EOS,
    which the attention mask hides.
    """
    if task in ("image-classification", "audio-classification", "speech-to-text"):
        return Collator()
    ids = (processor.pad_token_id, processor.eos_token_id, 0)
    return Collator(next(i for i in ids if i is not None), "right", pad_to_multiple_of, eyes_of(processor))
