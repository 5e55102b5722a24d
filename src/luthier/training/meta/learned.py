"""What a meta-training leaves, and the names of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPEC, RESULT, ADAPTER = "meta.json", "learned.json", "adapter"
NAME = "default"


@dataclass(frozen=True)
class MetaLearned:
    """What came of a meta-training."""

    folder: Path
    adapter: Path
    figures: dict[str, dict[str, dict[str, float]]]
    """By model (base, joint, the meta-learner) and way (as it is, adapted, in context): the mean `loss` of a token in
    domains that were not learned, with `low` and `high` of its 95% interval over episodes; of what is
    adapted also `calibration`, the expected calibration error of the answer's tokens.
    Of masks the ways are `shuffled`, `as it is` and `adapted`, the loss that of a pixel, and beside it `iou`, with
    `iou_low` and `iou_high`."""
    gains: dict[str, dict[str, float]]
    """By way: by how much the meta-learner's `loss` is below that of joint training in the same episodes, with `low`
    and `high` of the 95% interval of the mean difference; empty without joint training, and of masks."""
    model: Any
    processor: Any
