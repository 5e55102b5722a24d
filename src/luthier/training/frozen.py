"""Whether a run keeps what enters the first block with something to train, where its epochs after the first begin."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from luthier.core.adapters.control import disabled
from luthier.core.contracts.objective import ALSO
from luthier.core.errors import LuthierError
from luthier.core.guard import written
from luthier.core.locks import Release, lock
from luthier.core.sites.enterable import below, first_trained
from luthier.core.sites.entering import BY_TOKEN, Below, entered
from luthier.core.storage.activations import Activations, room
from luthier.data.pictures import PICTURES
from luthier.training.folder import holds_run
from luthier.training.processes import processes
from luthier.training.spec import Run

FOLDER = "frozen"
"""Where a run keeps them, in its own folder."""
AUTO, OFF, HALF = "auto", "off", "bfloat16"
SHARE = 4
"""Auto keeps them where at least one of so many blocks is below all that is trained."""
MOST = 16 * 2**30
"""Auto keeps no more bytes than this."""
FREE = 2
"""Auto leaves as much of the disk's free space as one part of so many."""

Features = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Frozen:
    """What a run keeps of its frozen blocks."""

    told: str | None
    """What the overview says of it; nothing where there is nothing to keep."""
    below: Below | None = None
    kept: Activations | None = None

    def record(self) -> dict[str, Any]:
        """Returns what `run.json` has of it."""
        if self.below is None or self.kept is None:
            return {"told": self.told}
        block, size = len(self.below.blocks), self.kept.bytes
        found = {"told": self.told, "block": block, "blocks": self.below.count}
        return found | {"dtype": _name(self.kept.dtype), "bytes": size}


def frozen_of(
    run: Run,
    model: Any,
    parts: Sequence[Features],
    steps: tuple[int, int],
    record: dict[str, Any],
    before: dict[str, Any] | None = None,
) -> Frozen:
    """Returns what a run keeps; `parts` are its training and evaluation rows, `steps` those of the run and of an epoch,
    `before` is the record of a run that is gone on with. Of `record` counts what enters a block.

    Raises `LuthierError` where it is asked for and cannot be.
    """
    wanted = run.training.cache_frozen
    if wanted == OFF:
        return Frozen(None)
    if before is not None and "block" not in (old := before.get("frozen", {"told": None})):
        return Frozen(old["told"])
    found = _found(run, model, parts, steps, record)
    if isinstance(found, Frozen):
        return found
    if wanted != AUTO:
        raise LuthierError(
            f"cache_frozen is {wanted}, and what enters the first trained block cannot be kept: {found}. Leave it out."
        )
    return Frozen(f"computed in each epoch: {found}" if found else None)


def _found(
    run: Run, model: Any, parts: Sequence[Features], steps: tuple[int, int], record: dict[str, Any]
) -> Frozen | str:
    """What is kept, or why nothing is; an empty reason where auto has nothing to say."""
    auto = run.training.cache_frozen == AUTO
    if steps[0] <= steps[1]:
        return "" if auto else "no row is seen twice"
    reason = _of_run(run, parts[0])
    first = 0 if reason is not None and not auto else first_trained(model)
    if not first and auto:
        return ""
    if reason is not None or not first:
        return reason or "something is trained at the first block, before it, or in a model of several stacks"
    with disabled(model):
        made = below(model, first)
    if isinstance(made, str):
        return made
    if auto and first * SHARE < made.count:
        return f"only {first} of {made.count} blocks are below all that is trained"
    dtype = torch.bfloat16 if run.training.cache_frozen == HALF else made.dtype
    rows = (row for part in parts for row in _rows(part))
    kept = Activations(run.folder / FOLDER, rows, made.width, dtype, _about(run, first, record))
    return _with_room(Frozen(None, made, kept), auto)


def _with_room(frozen: Frozen, auto: bool) -> Frozen | str:
    """What is kept, told with its size, or why there is no room for it."""
    below, kept = frozen.below, frozen.kept
    assert below is not None and kept is not None
    free, size = room(kept.folder), kept.bytes
    if not kept.folder.exists():
        if size > free:
            return f"it would be {_sized(size)}, and {kept.folder} has {_sized(free)} free"
        if auto and size > min(MOST, free // FREE):
            most = f"auto takes half of it, and at most {_sized(MOST)}"
            return f"it would be {_sized(size)}, {_sized(free)} are free, and {most}"
    told = f"{len(below.blocks)} of {below.count}, computed once: {_sized(size)} in {kept.folder}"
    return Frozen(f"{told} ({_name(kept.dtype)}; {_sized(free)} are free)", below, kept)


def _about(run: Run, first: int, record: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers that are kept, beside the rows."""
    settings = run.training
    told = {"block": first, "precision": settings.precision, "quantize": settings.quantize, "attn": settings.attn}
    return told | {key: record.get(key) for key in ("base", "versions")}


def _of_run(run: Run, features: Features) -> str | None:
    """Why a run keeps nothing whatever its model is."""
    settings = run.training
    reasons = {
        "its base is sharded": settings.shard,
        "it runs in several processes, each of which sees other rows in each epoch": processes() > 1,
        "its blocks are compiled": settings.compile,
        "noise is added to its embeddings (neftune)": bool(settings.neftune),
        f"{run.objective.name()} samples its answers": run.objective.samples,
        "its rows are no texts": "input_ids" not in features[0] or any(PICTURES in each for each in features),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _rows(features: Features) -> Iterator[list[np.ndarray]]:
    for feature in features:
        for each in (feature, *feature.get(ALSO, ())):
            yield [np.asarray(each[name], np.int64) for name in BY_TOKEN if name in each]


def _sized(size: float) -> str:
    """`312 MiB`, `41.3 GiB`."""
    return f"{size / 2**20:,.1f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GiB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def begun(frozen: Frozen, run: Run, model: Any, steps: tuple[int, int]) -> Iterator[None]:
    """Epochs after the first begin where they can while the context lasts. What the run keeps in its own folder goes
    once it is trained, or taken back."""
    below, kept = frozen.below, frozen.kept
    if below is None or kept is None or not (release := _opened(run, kept)):
        yield
        return
    trained = False
    try:
        with entered(model, below, kept) as entry:
            yield
        trained = True
        if entry.passes > steps[1] and not (entry.begun or kept.failed):
            warnings.warn(
                "the frozen blocks were computed in every pass: what the model is given are not the run's rows, or "
                "more than their tokens.",
                stacklevel=2,
            )
    finally:
        kept.close()
        release()
        if trained or not holds_run(run.folder):
            kept.remove()


def _opened(run: Run, kept: Activations) -> Release | None:
    """Opens what is kept, for this process alone; None where the disk refuses it, which is told. Raises where numbers
    would be rounded, for without what is kept they are others."""
    held: Release | None = None
    try:
        with written(str(kept.folder)):
            kept.folder.mkdir(parents=True, exist_ok=True)
            held = lock(kept.folder, patience=0) or (lambda: None)
            kept.open()
    except LuthierError as error:
        if held is not None:
            kept.remove()
            held()
        if run.training.cache_frozen == HALF:
            raise
        warnings.warn(f"{error} The frozen blocks are computed in every epoch.", stacklevel=3)
        return None
    return held
