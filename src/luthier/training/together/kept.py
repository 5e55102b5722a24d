"""An adapter of a pool on disk: a normal adapter folder, and beside it what its training goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.core.adapters.attach import detach
from luthier.core.adapters.share import Stream, seeded
from luthier.core.errors import LuthierError
from luthier.core.files import committed, free_folder, sha256
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.records import read_json, write_json
from luthier.core.storage import store
from luthier.core.storage.format import SPEC
from luthier.core.storage.weights import WEIGHTS
from luthier.training.together.member import Member, member

TRAINING = "training"
"""The folder beside an adapter's files that holds what training goes on from."""
TENSORS, STATE = "state.safetensors", "state.json"
TRIED = "being-loaded"
"""The name under which an adapter is tried before it takes the place of one that is there."""


def save_member(model: Any, own: Member, folder: Path, optimizer: bool, base: str | None) -> Path:
    """Writes the adapter, and with `optimizer` its training state, whole or not at all."""
    free_folder(folder, SPEC, "an adapter")
    with committed(folder) as temporary:
        store.save(model, temporary, own.name, base=base)
        if optimizer:
            (temporary / TRAINING).mkdir()
            held = {key: t.detach().cpu().contiguous().clone() for key, t in own.state().items()}
            save_file(held, temporary / TRAINING / TENSORS)
            write_json(temporary / TRAINING / STATE, _told(temporary))
    return folder


def _told(folder: Path) -> dict[str, Any]:
    """The checksums of the adapter and of its state, by which a reader knows that they belong together."""
    return {"adapter": sha256(folder / WEIGHTS), "state": sha256(folder / TRAINING / TENSORS)}


def load_member(model: Any, before: Member | None, name: str, folder: Path, optimizer: bool, seed: int) -> Member:
    """Attaches a saved adapter in the place of `before`, once it has proved to fit."""
    held = _state(path_of(folder)) if optimizer else None
    if before is not None:
        store.load(model, folder, TRIED)
        trained = set(member(model, TRIED, seed, Stream.now(model.device)).params)
        detach(model, TRIED)
        _refuse_other(folder, trained, held)
        detach(model, name)
    store.load(model, folder, name)
    with seeded(model.device, seed):
        made = member(model, name, seed, Stream.now(model.device))
    if held is not None:
        try:
            _refuse_other(folder, set(made.params), held)
        except LuthierError:
            detach(model, name)
            raise
        made.restore(held)
    return made


def _state(folder: Path) -> dict[str, Tensor]:
    """The training state of a folder, which is that of the adapter in it."""
    place = folder / TRAINING
    if not (place / STATE).is_file() or not (place / TENSORS).is_file():
        raise LuthierError(
            f"{folder} holds no training state ({TRAINING}/{STATE} is not there), as it was saved without; load it "
            "without the optimiser's state (optimizer=False)."
        )
    if read_json(place / STATE) != _told(folder):
        raise LuthierError(f"{place} is damaged, or of another adapter: its checksums do not match. Save it again.")
    with guarded(f"{place} cannot be read"):
        return load_file(place / TENSORS)


def _refuse_other(folder: Path, trained: set[str], held: dict[str, Tensor] | None) -> None:
    """Raises for a training state of other tensors than the adapter's."""
    named = [key.partition("/") for key in held or {}]
    strange = sorted({key for kind, _, key in named if key and kind != "random"} - trained)
    if strange:
        raise LuthierError(f"{folder / TRAINING} holds the state of {strange[0]!r}, which the adapter does not train.")
