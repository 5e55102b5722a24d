"""The spread of an adapter that is a distribution: the standard deviation of its numbers, beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.adapters.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.files import AS_IT_WAS, own_file
from luthier.core.guard import guarded, written
from luthier.core.storage.format import read
from luthier.core.storage.store import stored

SPREAD, OF = "spread.safetensors", "adapter"
"""The file, and the key of its header that has the SHA-256 of the adapter's tensors."""


def save_spread(folder: Path, name: str, spread: Mapping[str, Tensor]) -> None:
    """Saves the standard deviations of the adapter `name`, which lies in the folder, by the names that a model has."""
    held = {stored(key, name): t.detach().cpu().contiguous() for key, t in spread.items()}
    with written(SPREAD, AS_IT_WAS):
        save_file(held, folder / SPREAD, metadata={OF: read(folder)["sha256"]})


def read_spread(folder: Path, model: nn.Module, name: str) -> dict[str, Tensor] | None:
    """Returns the standard deviations by the names of a model that the adapter of this folder is on.

    None where the adapter is not a distribution. Raises `LuthierError` for a file that is damaged or another adapter's.
    """
    if not (folder / SPREAD).exists():
        return None
    path, own = own_file(folder, SPREAD), {stored(key, name): (key, p) for key, p in tensors(model, name).items()}
    with guarded(f"{path} cannot be read"), safetensors.safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get(OF) != read(folder)["sha256"]:
            raise LuthierError(f"{path} is of another adapter than the one beside it; remove it, or save both again.")
        found = {}
        for key in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(key).get_shape())
            if key not in own or shape != tuple(own[key][1].shape):
                raise LuthierError(f"{path} holds {key[:80]} of the shape {shape}, which the adapter has not.")
            found[own[key][0]] = file.get_tensor(key)
    if any(not bool((t.isfinite() & (t >= 0)).all()) for t in found.values()):
        raise LuthierError(f"{path} holds values that are no standard deviations.")
    return found
