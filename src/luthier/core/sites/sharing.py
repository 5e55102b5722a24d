"""Prompts that several rows of a batch answer, found so that a packed batch computes each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

TOLD = {"input_ids", "attention_mask", "labels", "shift_labels", "logits_to_keep", "use_cache", "return_dict"}
"""Arguments of a pass by which rows with the same tokens do not differ before their labels."""


class Shared:
    """Which tokens of a batch's rows are in a stream that holds shared prompts once."""

    def __init__(self, width: int, sizes: Sequence[int], ahead: Sequence[int], device: torch.device) -> None:
        """`sizes` are the tokens of each row, `ahead` how many of them a row before it has in the stream."""
        self.ahead = list(ahead)
        """Of each row, the tokens of its prompt that are in the stream as another row's."""
        self.lengths = [size - skipped for size, skipped in zip(sizes, ahead, strict=True)]
        """Tokens of each row in the stream."""
        self.first = list(accumulate(range(len(sizes)), lambda before, row: before if ahead[row] else row))
        """The row that has the prompt of each row."""
        starts = [0, *accumulate(self.lengths)]
        rows = list(enumerate(zip(sizes, ahead, strict=True)))
        self.places = _joined([(row * width + skipped, row * width + size) for row, (size, skipped) in rows], device)
        """Places of the stream's tokens among rows * width."""
        self.filled = _joined([(row * width, row * width + size) for row, (size, _) in rows], device)
        """Places of all real tokens."""
        both = [
            part
            for row, (_, skipped) in rows
            for part in ((starts[self.first[row]], starts[self.first[row]] + skipped), (starts[row], starts[row + 1]))
        ]
        self.back = _joined(both, device)
        """The stream's token at each of them."""

    def spread(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of all real tokens, and what stands there, of the stream's tokens [tokens, ...]."""
        return self.filled, tokens.index_select(0, self.back)

    def with_prompts(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Puts the shared prompts before the rows' own tokens, [1, heads, tokens of the row, ...] each."""
        return [
            torch.cat([parts[first][:, :, :skipped], part], 2) if skipped else part
            for part, first, skipped in zip(parts, self.first, self.ahead, strict=True)
        ]


def shared_in(batch: Mapping[str, Any], sizes: Sequence[int]) -> Shared | None:
    """Returns the prompts that rows of a batch share with the row before them; None where there are none.

    A prompt is what stands before the first label. Nothing is shared where the pass is told more of its rows.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    told = {key for key, value in batch.items() if value is not None}
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or labels.shape != ids.shape or told - TOLD:
        return None
    ends = labels.ne(-100).int().argmax(1)
    before = torch.arange(ids.shape[1], device=ids.device) < ends[1:, None]
    alike = (ends[1:] == ends[:-1]) & ((ids[1:] == ids[:-1]) | ~before).all(1)
    ahead = [0, *torch.where(alike, ends[1:], 0).tolist()]
    whole = sum(sizes) - sum(ahead) == ids.shape[1]  # the stream would look like what all rows have in common
    return Shared(ids.shape[1], sizes, ahead, ids.device) if any(ahead) and not whole else None


def _joined(spans: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, end) for start, end in spans]).to(device)
