"""Whether a run packs its batches, so that no padding is computed, and what it tells of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from luthier.core.adapters.attach import find_state
from luthier.core.adapters.control import disabled
from luthier.core.contracts.positions import Invocation
from luthier.core.errors import LuthierError
from luthier.core.sites.packable import shares_prompts, why_not_packed
from luthier.core.sites.packing import packed
from luthier.data.pictures import PICTURES
from luthier.models.seeing import reads_pictures
from luthier.training.spec import Run
from luthier.training.writing import writes

UNTOLD = "the run was started with padded batches"
"""Of runs of Luthier 0.2 and before, which had no others."""


@dataclass(frozen=True)
class Batches:
    """How the batches of a run are computed."""

    packed: bool
    """Whether no padding is computed."""
    told: str | None
    """What the overview says of it; nothing where rows have no padding."""
    shared: bool = False
    """Whether a prompt of several rows is computed once."""


def batches_of(
    run: Run, model: Any, features: Sequence[dict[str, Any]], before: dict[str, Any] | None, task: str
) -> Batches:
    """Returns how the batches of a run are computed; `before` is the record of a run that is gone on with.

    Raises `LuthierError` where `pack` is asked for and the model cannot.
    """
    wanted = run.training.pack
    if wanted is None and before is not None and not before.get("packed", False):
        return Batches(False, before.get("batches", f"padded: {UNTOLD}"))
    if wanted is False:
        return Batches(False, "padded, as told")
    reason = _of_run(run, task) or why_not(model, features)
    if reason is None:
        shared = before.get("shared_prompts", False) if before is not None else several(run, task) and shares(model)
        return Batches(True, f"packed: no padding is computed{', prompts once' if shared else ''}", shared)
    if wanted:
        raise LuthierError(
            f"pack computes the rows of a batch without padding, and {type(model).__name__} cannot: {reason}. Leave "
            "pack out, and its batches are padded."
        )
    return Batches(False, f"padded: {reason}" if "attention_mask" in features[0] else None)


def _of_run(run: Run, task: str) -> str | None:
    """Why a run pads whatever its model is."""
    if run.training.shard:
        return "its base is to be sharded"
    if writes(run, task):
        return "its evaluations write answers"
    compiled = "its blocks are compiled, for shapes that rows in one stream do not have twice"
    return compiled if run.training.compile else None


def several(run: Run, task: str) -> bool:
    """Whether batches hold several answers to a prompt, whose labels tell where it ends."""
    return run.objective.samples or (task == "causal-lm" and "pairs" in run.objective.reads)


def shares(model: Any) -> bool:
    """Whether rows with the same prompt may share it: the model is causal, and no adapter acts on a token of the prompt
    by what is behind the prompt."""
    state = find_state(model)
    if state is None:
        return shares_prompts(model)
    tuners = [tuner for container in state.containers for tuner in container.tuners()]
    if any(tuner.form.sees or isinstance(tuner.positions, Invocation) for tuner in tuners):
        return False
    with disabled(model):
        return shares_prompts(model)


def why_not(model: Any, features: Sequence[dict[str, Any]]) -> str | None:
    """Returns why the rows of a model cannot be packed; adapters act on each token for itself, and are left out."""
    if not {"input_ids", "attention_mask"} <= set(features[0]):
        return "its rows are no texts, or have no padding"
    if reads_pictures(model.config) and any("token_type_ids" in each.get(PICTURES, ()) for each in features):
        return "the tokens of a picture see each other both ways, which a mask of rows does not tell"
    if find_state(model) is None:
        return why_not_packed(model)
    with disabled(model):
        return why_not_packed(model)


@contextmanager
def computed(batches: Batches, model: Any) -> Iterator[None]:
    """The model computes its batches so while the context lasts."""
    if not batches.packed:
        yield
        return
    with packed(model, batches.shared):
        yield
